-- The API: thin wrappers in public. They run as the caller, so that the grants of access.sql decide,
-- and set search_path, which also keeps them from being inlined (an inlined function keeps the
-- permission checks of whoever planned it first). Those that are called for each job are plpgsql, which
-- keeps its plans for the session.

-- ---------------------------------------------------------------- everyone

create function public.info() returns jsonb
language sql stable set search_path = '' as $$ select infernet.info() $$;

create function public.overview() returns jsonb
language sql stable set search_path = '' as $$ select infernet.overview() $$;

create function public.provider_cards()
returns table (id uuid, name text, region text, status public.node_status, specs jsonb, created_at timestamptz)
language sql stable set search_path = '' as $$ select * from infernet.provider_cards() $$;

-- ---------------------------------------------------------------- users

create function public.whoami() returns jsonb
language sql stable set search_path = '' as $$ select infernet.whoami() $$;

create function public.balance() returns jsonb
language sql stable set search_path = '' as $$ select infernet.balance() $$;

create function public.my_earnings() returns jsonb
language sql set search_path = '' as $$ select infernet.my_earnings() $$;

create function public.make_enrolment(p_role text default 'provider', p_expires_secs int default 900) returns jsonb
language sql set search_path = '' as $$ select infernet.make_enrolment(p_role, p_expires_secs) $$;

create function public.quote_job(p_model text, p_input jsonb, p_max_tokens int default null) returns jsonb
language sql stable set search_path = '' as $$ select infernet.quote_job(p_model, p_input, p_max_tokens) $$;

create function public.submit_job(
  p_id uuid, p_model text, p_input jsonb, p_kind text default 'chat', p_max_tokens int default null,
  p_max_cost numeric default null, p_deadline_secs int default null, p_title text default null, p_needs jsonb default '{}',
  p_priority int default 0, p_delay_secs int default 0, p_max_seconds int default null) returns jsonb
language plpgsql set search_path = '' as $$
begin
  return infernet.submit_job(p_id, p_model, p_input, p_kind, p_max_tokens, p_max_cost, p_deadline_secs, p_title,
                             p_needs, p_priority, p_delay_secs, p_max_seconds);
end $$;

create function public.get_job(p_job uuid) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  return infernet.get_job(p_job);
end $$;

create function public.cancel_job(p_job uuid) returns jsonb
language plpgsql set search_path = '' as $$
begin
  return infernet.cancel_job(p_job);
end $$;

create function public.failed_jobs(p_limit int default 100, p_before timestamptz default null) returns jsonb
language sql stable set search_path = '' as $$ select infernet.failed_jobs(p_limit, p_before) $$;

create function public.retry_job(p_job uuid) returns jsonb
language sql set search_path = '' as $$ select infernet.retry_job(p_job) $$;

create function public.discard_job(p_job uuid) returns jsonb
language sql set search_path = '' as $$ select infernet.discard_job(p_job) $$;

create function public.submit_batch(
  p_id uuid, p_model text, p_items jsonb, p_kind text default 'chat', p_max_tokens int default null,
  p_max_cost numeric default null, p_deadline_secs int default null, p_title text default null, p_needs jsonb default '{}',
  p_priority int default 0, p_delay_secs int default 0, p_max_seconds int default null) returns jsonb
language plpgsql set search_path = '' as $$
begin
  return infernet.submit_batch(p_id, p_model, p_items, p_kind, p_max_tokens, p_max_cost, p_deadline_secs, p_title,
                               p_needs, p_priority, p_delay_secs, p_max_seconds);
end $$;

create function public.get_batch(p_batch uuid, p_after int default 0, p_limit int default 100) returns jsonb
language sql stable set search_path = '' as $$ select infernet.get_batch(p_batch, p_after, p_limit) $$;

create function public.list_batches(p_limit int default 20, p_before timestamptz default null) returns jsonb
language sql stable set search_path = '' as $$ select infernet.list_batches(p_limit, p_before) $$;

create function public.cancel_batch(p_batch uuid) returns jsonb
language sql set search_path = '' as $$ select infernet.cancel_batch(p_batch) $$;

create function public.explain_job(p_job uuid) returns jsonb
language sql set search_path = '' as $$ select infernet.explain_job(p_job) $$;

create function public.forget_job(p_job uuid) returns jsonb
language sql set search_path = '' as $$ select infernet.forget_job(p_job) $$;

-- ---------------------------------------------------------------- nodes

create function public.register_node(
  p_inventory jsonb, p_offers jsonb default '[]', p_version text default null, p_online boolean default true) returns jsonb
language sql set search_path = '' as $$ select infernet.register_node(p_inventory, p_offers, p_version, p_online) $$;

create function public.heartbeat(
  p_running uuid[] default '{}', p_realtime boolean default true, p_draining boolean default false) returns jsonb
language plpgsql set search_path = '' as $$
begin
  return infernet.heartbeat(p_running, p_realtime, p_draining);
end $$;

create function public.claim_attempts(p_running uuid[] default '{}', p_restart boolean default false) returns jsonb
language plpgsql set search_path = '' as $$
begin
  return infernet.claim_attempts(p_running, p_restart);
end $$;

create function public.start_attempt(p_attempt uuid, p_lease uuid) returns jsonb
language plpgsql set search_path = '' as $$
begin
  return infernet.start_attempt(p_attempt, p_lease);
end $$;

create function public.complete_attempt(
  p_attempt uuid, p_lease uuid, p_output text, p_finish text, p_usage jsonb, p_receipt jsonb) returns jsonb
language plpgsql set search_path = '' as $$
begin
  return infernet.complete_attempt(p_attempt, p_lease, p_output, p_finish, p_usage, p_receipt);
end $$;

create function public.start_attempts(p_attempts uuid[], p_leases uuid[]) returns jsonb
language plpgsql set search_path = '' as $$
begin
  return infernet.start_attempts(p_attempts, p_leases);
end $$;

create function public.complete_attempts(p_results jsonb) returns jsonb
language plpgsql set search_path = '' as $$
begin
  return infernet.complete_attempts(p_results);
end $$;

create function public.fail_attempt(
  p_attempt uuid, p_lease uuid, p_code text, p_message text default null, p_retry boolean default true) returns jsonb
language plpgsql set search_path = '' as $$
begin
  return infernet.fail_attempt(p_attempt, p_lease, p_code, p_message, p_retry);
end $$;

create function public.leave() returns jsonb
language sql set search_path = '' as $$ select infernet.leave() $$;

create function public.node_status() returns jsonb
language sql set search_path = '' as $$ select infernet.node_status() $$;

create function public.acknowledge_command(p_id uuid) returns jsonb
language sql set search_path = '' as $$ select infernet.acknowledge_command(p_id) $$;

create function public.finish_command(p_id uuid, p_ok boolean, p_result jsonb default null, p_error text default null) returns jsonb
language sql set search_path = '' as $$ select infernet.finish_command(p_id, p_ok, p_result, p_error) $$;

-- ---------------------------------------------------------------- owners of nodes, and operators

create function public.list_nodes(p_status text default null, p_limit int default 200) returns jsonb
language sql set search_path = '' as $$ select infernet.list_nodes(p_status, p_limit) $$;

create function public.get_node(p_node text) returns jsonb
language sql set search_path = '' as $$ select infernet.get_node(p_node) $$;

create function public.drain_node(p_node uuid, p_reason text default null) returns jsonb
language sql set search_path = '' as $$ select infernet.drain_node(p_node, p_reason) $$;

create function public.resume_node(p_node uuid) returns jsonb
language sql set search_path = '' as $$ select infernet.resume_node(p_node) $$;

create function public.set_maintenance(
  p_node uuid, p_from timestamptz default null, p_until timestamptz default null, p_note text default null) returns jsonb
language sql set search_path = '' as $$ select infernet.set_maintenance(p_node, p_from, p_until, p_note) $$;

create function public.command_node(p_node uuid, p_command text, p_args jsonb default '{}', p_expires_secs int default null) returns jsonb
language sql set search_path = '' as $$ select infernet.command_node(p_node, p_command, p_args, p_expires_secs) $$;

create function public.cancel_command(p_id uuid) returns jsonb
language sql set search_path = '' as $$ select infernet.cancel_command(p_id) $$;

-- ---------------------------------------------------------------- operators

create function public.grant_credit(p_id uuid, p_public_key text, p_amount numeric, p_memo text default null) returns jsonb
language sql set search_path = '' as $$ select infernet.grant_credit(p_id, p_public_key, p_amount, p_memo) $$;

create function public.set_node_approval(p_node uuid, p_approval text) returns jsonb
language sql set search_path = '' as $$ select infernet.set_node_approval(p_node, p_approval) $$;

create function public.set_user_status(p_public_key text, p_status text) returns jsonb
language sql set search_path = '' as $$ select infernet.set_user_status(p_public_key, p_status) $$;

create function public.set_consumer_limits(
  p_public_key text, p_priority_max int default 0, p_queued_limit int default null, p_running_limit int default null) returns jsonb
language sql set search_path = '' as $$
  select infernet.set_consumer_limits(p_public_key, p_priority_max, p_queued_limit, p_running_limit)
$$;

create function public.set_setting(p_key text, p_value jsonb) returns jsonb
language sql set search_path = '' as $$ select infernet.set_setting(p_key, p_value) $$;

create function public.prove_ledger() returns jsonb
language sql stable set search_path = '' as $$ select infernet.operator_proof() $$;

-- One name for both who may ask: an operator, and service_role, which is no person.
create function public.health() returns jsonb
language plpgsql set search_path = '' as $$
begin
  if current_user = 'service_role' then
    return infernet.health();
  end if;
  return infernet.operator_health();
end $$;

create function public.check_histories(p_after uuid default null, p_limit int default 1000) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  if current_user = 'service_role' then
    return infernet.check_histories(p_after, p_limit);
  end if;
  return infernet.operator_histories(p_after, p_limit);
end $$;

-- ---------------------------------------------------------------- service_role

create function public.consume_login(
  p_event_id text, p_public_key text, p_event_time bigint, p_kind text, p_role text default null,
  p_enrolment text default null, p_name text default null, p_address text default null) returns jsonb
language sql set search_path = '' as $$
  select infernet.consume_login(p_event_id, p_public_key, p_event_time, p_kind, p_role, p_enrolment, p_name, p_address)
$$;

create function public.ensure_operator(p_public_key text, p_name text default null) returns uuid
language sql set search_path = '' as $$ select infernet.ensure_operator(p_public_key, p_name) $$;

create function public.tick() returns jsonb
language sql set search_path = '' as $$ select infernet.tick() $$;
