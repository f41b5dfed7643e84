-- Who may do what, in one place: deny by default, then grants by name, then the rows each may read.
-- No client writes a table.

-- ---------------------------------------------------------------- deny

do $$
declare
  v_object record;
begin
  for v_object in
    select format('%I.%I', n.nspname, c.relname) as name from pg_catalog.pg_class c
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'v', 'p') and c.relowner = (select oid from pg_catalog.pg_roles where rolname = current_user)
      and n.nspname in ('infernet', 'public')
      and (n.nspname = 'infernet' or c.relname in (
        'settings', 'users', 'operators', 'providers', 'clients', 'aggregators', 'node_liveness', 'node_stops', 'models', 'offers',
        'jobs', 'batches', 'job_contents', 'job_attempts', 'job_events', 'node_commands', 'distributed_jobs', 'node_roles',
        'ledger_accounts', 'ledger_transfers', 'ledger_entries', 'ledger_holds', 'ledger_statement',
        'platform_wallets', 'provider_payouts', 'payout_batches', 'payment_transactions'))
  loop
    execute format('revoke all on %s from public, anon, authenticated, service_role', v_object.name);
  end loop;
  for v_object in
    select p.oid::regprocedure as name from pg_catalog.pg_proc p
    join pg_catalog.pg_namespace n on n.oid = p.pronamespace
    where n.nspname = 'infernet' or (n.nspname = 'public' and p.proname in (
      'info', 'overview', 'provider_cards', 'whoami', 'balance', 'my_earnings', 'make_enrolment', 'quote_job', 'submit_job', 'get_job',
      'cancel_job', 'failed_jobs', 'retry_job', 'discard_job',
      'submit_batch', 'get_batch', 'list_batches', 'cancel_batch', 'start_attempts', 'complete_attempts', 'register_node', 'heartbeat', 'claim_attempts', 'start_attempt', 'complete_attempt', 'fail_attempt',
      'leave', 'node_status', 'acknowledge_command', 'finish_command', 'drain_node', 'resume_node', 'set_maintenance',
      'explain_job', 'forget_job', 'check_histories',
      'command_node', 'cancel_command', 'list_nodes', 'get_node', 'grant_credit', 'set_node_approval', 'set_user_status', 'set_consumer_limits', 'set_setting', 'prove_ledger', 'health',
      'consume_login', 'ensure_operator', 'tick'))
  loop
    execute format('revoke all on function %s from public, anon, authenticated, service_role', v_object.name);
  end loop;
end $$;

-- ---------------------------------------------------------------- calls

grant execute on function public.info(), infernet.info(), public.overview(), infernet.overview(),
  public.provider_cards(), infernet.provider_cards() to anon, authenticated, service_role;

grant execute on function
  public.whoami(), infernet.whoami(), public.balance(), infernet.balance(), public.my_earnings(), infernet.my_earnings(),
  public.make_enrolment(text, int), infernet.make_enrolment(text, int),
  public.quote_job(text, jsonb, int), infernet.quote_job(text, jsonb, int),
  public.submit_job(uuid, text, jsonb, text, int, numeric, int, text, jsonb, int, int, int),
  infernet.submit_job(uuid, text, jsonb, text, int, numeric, int, text, jsonb, int, int, int),
  public.get_job(uuid), infernet.get_job(uuid), public.cancel_job(uuid), infernet.cancel_job(uuid),
  public.failed_jobs(int, timestamptz), infernet.failed_jobs(int, timestamptz),
  public.retry_job(uuid), infernet.retry_job(uuid), public.discard_job(uuid), infernet.discard_job(uuid),
  public.submit_batch(uuid, text, jsonb, text, int, numeric, int, text, jsonb, int, int, int),
  infernet.submit_batch(uuid, text, jsonb, text, int, numeric, int, text, jsonb, int, int, int),
  public.get_batch(uuid, int, int), infernet.get_batch(uuid, int, int),
  public.list_batches(int, timestamptz), infernet.list_batches(int, timestamptz),
  public.cancel_batch(uuid), infernet.cancel_batch(uuid),
  public.explain_job(uuid), infernet.explain_job(uuid), public.forget_job(uuid), infernet.forget_job(uuid)
to authenticated;

grant execute on function
  public.register_node(jsonb, jsonb, text, boolean), infernet.register_node(jsonb, jsonb, text, boolean),
  public.heartbeat(uuid[], boolean, boolean), infernet.heartbeat(uuid[], boolean, boolean),
  public.claim_attempts(uuid[], boolean), infernet.claim_attempts(uuid[], boolean),
  public.start_attempt(uuid, uuid), infernet.start_attempt(uuid, uuid),
  public.complete_attempt(uuid, uuid, text, text, jsonb, jsonb), infernet.complete_attempt(uuid, uuid, text, text, jsonb, jsonb),
  public.start_attempts(uuid[], uuid[]), infernet.start_attempts(uuid[], uuid[]),
  public.complete_attempts(jsonb), infernet.complete_attempts(jsonb),
  public.fail_attempt(uuid, uuid, text, text, boolean), infernet.fail_attempt(uuid, uuid, text, text, boolean),
  public.leave(), infernet.leave(), public.node_status(), infernet.node_status(),
  public.acknowledge_command(uuid), infernet.acknowledge_command(uuid),
  public.finish_command(uuid, boolean, jsonb, text), infernet.finish_command(uuid, boolean, jsonb, text)
to authenticated;

grant execute on function
  public.drain_node(uuid, text), infernet.drain_node(uuid, text), public.resume_node(uuid), infernet.resume_node(uuid),
  public.set_maintenance(uuid, timestamptz, timestamptz, text), infernet.set_maintenance(uuid, timestamptz, timestamptz, text),
  public.command_node(uuid, text, jsonb, int), infernet.command_node(uuid, text, jsonb, int),
  public.cancel_command(uuid), infernet.cancel_command(uuid),
  public.list_nodes(text, int), infernet.list_nodes(text, int), public.get_node(text), infernet.get_node(text)
to authenticated;

grant execute on function
  public.grant_credit(uuid, text, numeric, text), infernet.grant_credit(uuid, text, numeric, text),
  public.set_node_approval(uuid, text), infernet.set_node_approval(uuid, text),
  public.set_user_status(text, text), infernet.set_user_status(text, text),
  public.set_consumer_limits(text, int, int, int), infernet.set_consumer_limits(text, int, int, int),
  public.set_setting(text, jsonb), infernet.set_setting(text, jsonb),
  public.prove_ledger(), infernet.operator_proof(), public.health(), infernet.operator_health(),
  public.check_histories(uuid, int), infernet.operator_histories(uuid, int)
to authenticated;

grant execute on function
  public.consume_login(text, text, bigint, text, text, text, text, text),
  infernet.consume_login(text, text, bigint, text, text, text, text, text),
  public.ensure_operator(text, text), infernet.ensure_operator(text, text),
  public.tick(), infernet.tick(), infernet.prove_ledger(), public.health(), infernet.health(),
  public.check_histories(uuid, int), infernet.check_histories(uuid, int)
to service_role;

-- What policies call runs as whoever reads.
grant execute on function infernet.is_operator(), infernet.may_receive(text), infernet.may_send(text) to authenticated;
grant execute on function infernet.usd(numeric), infernet.price(numeric, numeric, numeric, bigint, bigint, bigint) to authenticated;

-- ---------------------------------------------------------------- tables

grant select on public.models, public.offers to anon;
grant select on
  public.settings, public.users, public.operators, public.providers, public.clients, public.aggregators, public.node_liveness,
  public.node_stops, public.models, public.offers, public.jobs, public.batches, public.job_contents, public.job_attempts, public.job_events,
  public.node_commands, public.distributed_jobs, public.node_roles,
  public.ledger_accounts, public.ledger_transfers, public.ledger_entries, public.ledger_holds, public.ledger_statement,
  public.platform_wallets, public.provider_payouts, public.payout_batches, public.payment_transactions
to authenticated;
-- Studio and scripts of an operator's own. The ledger stays read-only even for them.
grant select on all tables in schema infernet to service_role;
grant select, insert, update, delete on
  public.settings, public.users, public.operators, public.providers, public.clients, public.aggregators, public.node_liveness,
  public.models, public.offers, public.jobs, public.batches, public.job_contents, public.job_attempts, public.job_events,
  public.node_commands, public.distributed_jobs, public.node_roles,
  public.platform_wallets, public.provider_payouts, public.payout_batches, public.payment_transactions
to service_role;
-- What follows from a stop is kept elsewhere too: it is changed by calls alone.
grant select on public.node_stops to service_role;
grant select on public.ledger_accounts, public.ledger_transfers, public.ledger_entries, public.ledger_holds,
  public.ledger_statement to service_role;

-- ---------------------------------------------------------------- rows

create policy read on public.settings for select to authenticated using ((select infernet.is_operator()));
create policy read on public.users for select to authenticated
  using (id = (select auth.uid()) or (select infernet.is_operator()));
create policy read on public.operators for select to authenticated
  using (user_id = (select auth.uid()) or (select infernet.is_operator()));

create policy read on public.providers for select to authenticated
  using (id = (select auth.uid()) or owner_id = (select auth.uid()) or (select infernet.is_operator()));
create policy read on public.clients for select to authenticated
  using (id = (select auth.uid()) or owner_id = (select auth.uid()) or (select infernet.is_operator()));
create policy read on public.aggregators for select to authenticated
  using (id = (select auth.uid()) or owner_id = (select auth.uid()) or (select infernet.is_operator()));
create policy read on public.node_liveness for select to authenticated
  using (node_id = (select auth.uid()) or owner_id = (select auth.uid()) or (select infernet.is_operator()));

create policy read on public.node_stops for select to authenticated
  using (node_id = (select auth.uid()) or owner_id = (select auth.uid()) or (select infernet.is_operator()));

create policy read on public.models for select to anon, authenticated using (visibility = 'public');
create policy read_anon on public.offers for select to anon using (enabled and listed);
create policy read on public.offers for select to authenticated
  using ((enabled and listed) or provider_id = (select auth.uid()) or (select infernet.is_operator())
         or provider_id in (select p.id from public.providers p where p.owner_id = (select auth.uid())));

-- A job's row is its consumer's, and operators' who watch the fleet; what it says is its consumer's alone.
create policy read on public.jobs for select to authenticated
  using (consumer_id = (select auth.uid()) or (select infernet.is_operator()));
create policy read on public.batches for select to authenticated
  using (consumer_id = (select auth.uid()) or (select infernet.is_operator()));
create policy read on public.job_contents for select to authenticated
  using (job_id in (select j.id from public.jobs j where j.consumer_id = (select auth.uid())));
create policy read on public.job_attempts for select to authenticated
  using (provider_id = (select auth.uid()) or (select infernet.is_operator())
         or job_id in (select j.id from public.jobs j where j.consumer_id = (select auth.uid()))
         or provider_id in (select p.id from public.providers p where p.owner_id = (select auth.uid())));
create policy read on public.job_events for select to authenticated
  using ((select infernet.is_operator())
         or job_id in (select j.id from public.jobs j where j.consumer_id = (select auth.uid())));

create policy read on public.node_commands for select to authenticated
  using (node_id = (select auth.uid()) or issued_by = (select auth.uid()) or (select infernet.is_operator())
         or node_id in (select p.id from public.providers p where p.owner_id = (select auth.uid())));
create policy read on public.distributed_jobs for select to authenticated
  using (coordinator_id = (select auth.uid()) or (select infernet.is_operator())
         or job_id in (select j.id from public.jobs j where j.consumer_id = (select auth.uid())));
create policy read on public.node_roles for select to authenticated
  using (node_id = (select auth.uid()) or (select infernet.is_operator()));

create policy read on public.ledger_accounts for select to authenticated
  using (party_id = (select auth.uid()) or (select infernet.is_operator()));
create policy read on public.ledger_entries for select to authenticated
  using ((select infernet.is_operator())
         or account_id in (select a.id from public.ledger_accounts a where a.party_id = (select auth.uid())));
create policy read on public.ledger_transfers for select to authenticated
  using ((select infernet.is_operator())
         or id in (select e.transfer_id from public.ledger_entries e));
create policy read on public.ledger_holds for select to authenticated
  using (consumer_id = (select auth.uid()) or (select infernet.is_operator()));

create policy read on public.platform_wallets for select to authenticated using ((select infernet.is_operator()));
create policy read on public.provider_payouts for select to authenticated
  using (owner_id = (select auth.uid()) or (select infernet.is_operator()));
create policy read on public.payout_batches for select to authenticated using ((select infernet.is_operator()));
create policy read on public.payment_transactions for select to authenticated
  using (user_id = (select auth.uid()) or (select infernet.is_operator()));

notify pgrst, 'reload schema';
