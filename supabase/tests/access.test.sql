-- Who may do what, by hand and deny by default: what is not in these lists must not be. A new table or
-- function, or one grant too many, turns this file red until somebody has thought about it.
begin;
\ir actors.psql
select no_plan();

-- ------------------------------------------------------------ privileges of the database's roles

create function tests.tables() returns table (object text, kind "char", oid oid)
language sql as $$
  select n.nspname || '.' || c.relname, c.relkind, c.oid from pg_class c join pg_namespace n on n.oid = c.relnamespace
  where n.nspname in ('public', 'infernet') and c.relkind in ('r', 'v', 'm', 'p', 'f', 'S')
$$;
create function tests.privileges() returns table (role text, object text, verbs text)
language sql as $$
  select r.role, t.object, string_agg(v.verb, ' ' order by v.verb)
  from unnest(array['public', 'anon', 'authenticated', 'service_role']) as r (role)
  cross join tests.tables() t cross join unnest(array['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) as v (verb)
  where t.kind <> 'S'
    and (has_table_privilege(r.role, t.oid, v.verb)
         or (v.verb in ('SELECT', 'INSERT', 'UPDATE', 'REFERENCES') and has_any_column_privilege(r.role, t.oid, v.verb)))
  group by 1, 2
$$;

create temp table expected_table (object text primary key, anon text, authenticated text, service_role text);
insert into expected_table values
  ('public.settings',             '',       'SELECT', 'DELETE INSERT SELECT UPDATE'),
  ('public.users',                '',       'SELECT', 'DELETE INSERT SELECT UPDATE'),
  ('public.operators',            '',       'SELECT', 'DELETE INSERT SELECT UPDATE'),
  ('public.providers',            '',       'SELECT', 'DELETE INSERT SELECT UPDATE'),
  ('public.clients',              '',       'SELECT', 'DELETE INSERT SELECT UPDATE'),
  ('public.aggregators',          '',       'SELECT', 'DELETE INSERT SELECT UPDATE'),
  ('public.node_liveness',        '',       'SELECT', 'DELETE INSERT SELECT UPDATE'),
  ('public.node_stops',           '',       'SELECT', 'SELECT'),
  ('public.models',               'SELECT', 'SELECT', 'DELETE INSERT SELECT UPDATE'),
  ('public.offers',               'SELECT', 'SELECT', 'DELETE INSERT SELECT UPDATE'),
  ('public.jobs',                 '',       'SELECT', 'DELETE INSERT SELECT UPDATE'),
  ('public.batches',              '',       'SELECT', 'DELETE INSERT SELECT UPDATE'),
  ('public.job_contents',         '',       'SELECT', 'DELETE INSERT SELECT UPDATE'),
  ('public.job_attempts',         '',       'SELECT', 'DELETE INSERT SELECT UPDATE'),
  ('public.job_events',           '',       'SELECT', 'DELETE INSERT SELECT UPDATE'),
  ('public.node_commands',        '',       'SELECT', 'DELETE INSERT SELECT UPDATE'),
  ('public.distributed_jobs',     '',       'SELECT', 'DELETE INSERT SELECT UPDATE'),
  ('public.node_roles',           '',       'SELECT', 'DELETE INSERT SELECT UPDATE'),
  ('public.ledger_accounts',      '',       'SELECT', 'SELECT'),
  ('public.ledger_transfers',     '',       'SELECT', 'SELECT'),
  ('public.ledger_entries',       '',       'SELECT', 'SELECT'),
  ('public.ledger_holds',         '',       'SELECT', 'SELECT'),
  ('public.ledger_statement',     '',       'SELECT', 'SELECT'),
  ('public.platform_wallets',     '',       'SELECT', 'DELETE INSERT SELECT UPDATE'),
  ('public.provider_payouts',     '',       'SELECT', 'DELETE INSERT SELECT UPDATE'),
  ('public.payout_batches',       '',       'SELECT', 'DELETE INSERT SELECT UPDATE'),
  ('public.payment_transactions', '',       'SELECT', 'DELETE INSERT SELECT UPDATE'),
  ('infernet.keys',               '',       '',       'SELECT'),
  ('infernet.enrolments',         '',       '',       'SELECT'),
  ('infernet.login_events',       '',       '',       'SELECT'),
  ('infernet.rate_limits',        '',       '',       'SELECT'),
  ('infernet.pulse',              '',       '',       'SELECT'),
  ('infernet.offer_load',         '',       '',       'SELECT'),
  ('infernet.overview_kept',      '',       '',       'SELECT'),
  ('infernet.settings_row',       '',       '',       'SELECT'),
  ('infernet.node_faults',        '',       '',       'SELECT'),
  ('infernet.queue',              '',       '',       'SELECT'),
  ('infernet.turns',              '',       '',       'SELECT'),
  ('infernet.live_attempts',      '',       '',       'SELECT'),
  ('infernet.failed_jobs',        '',       '',       'SELECT'),
  ('infernet.outcomes',           '',       '',       'SELECT'),
  ('infernet.experiences',        '',       '',       'SELECT'),
  ('infernet.past_earnings',      '',       '',       'SELECT'),
  ('infernet.retention_walk',     '',       '',       'SELECT'),
  ('infernet.late_results',       '',       '',       'SELECT');

select set_eq($$select object from tests.tables() where kind <> 'S'$$, 'select object from expected_table', 'every table is in the list');
select set_eq('select role, object, verbs from tests.privileges()', $$
  select 'anon', object, anon from expected_table where anon <> '' union all
  select 'authenticated', object, authenticated from expected_table where authenticated <> '' union all
  select 'service_role', object, service_role from expected_table where service_role <> ''$$, 'each role has these rights on tables, and no other');
select is_empty($$select r.role, t.object from unnest(array['public', 'anon', 'authenticated', 'service_role']) as r (role), tests.tables() t
  where t.kind = 'S' and (has_sequence_privilege(r.role, t.oid, 'USAGE') or has_sequence_privilege(r.role, t.oid, 'SELECT') or has_sequence_privilege(r.role, t.oid, 'UPDATE'))$$,
  'nobody touches a sequence');
select is_empty($$select c.oid::regclass from pg_class c join pg_namespace n on n.oid = c.relnamespace
  where n.nspname in ('public', 'infernet') and c.relkind in ('r', 'p') and not c.relrowsecurity$$, 'row level security is on everywhere');
select is_empty($$select p.tablename, p.policyname from pg_policies p where p.schemaname in ('public', 'infernet') and p.cmd <> 'SELECT'$$, 'no policy lets a client write');

create temp table expected_function (signature text primary key, roles text);
insert into expected_function values
  -- everyone
  ('public.info()', 'anon authenticated service_role'), ('infernet.info()', 'anon authenticated service_role'),
  ('public.overview()', 'anon authenticated service_role'), ('infernet.overview()', 'anon authenticated service_role'),
  ('public.provider_cards()', 'anon authenticated service_role'), ('infernet.provider_cards()', 'anon authenticated service_role'),
  -- users, nodes and operators: the body says which
  ('public.whoami()', 'authenticated'), ('infernet.whoami()', 'authenticated'),
  ('public.balance()', 'authenticated'), ('infernet.balance()', 'authenticated'),
  ('public.my_earnings()', 'authenticated'), ('infernet.my_earnings()', 'authenticated'),
  ('public.make_enrolment(text,integer)', 'authenticated'), ('infernet.make_enrolment(text,integer)', 'authenticated'),
  ('public.quote_job(text,jsonb,integer)', 'authenticated'), ('infernet.quote_job(text,jsonb,integer)', 'authenticated'),
  ('public.submit_job(uuid,text,jsonb,text,integer,numeric,integer,text,jsonb,integer,integer,integer)', 'authenticated'),
  ('infernet.submit_job(uuid,text,jsonb,text,integer,numeric,integer,text,jsonb,integer,integer,integer)', 'authenticated'),
  ('public.get_job(uuid)', 'authenticated'), ('infernet.get_job(uuid)', 'authenticated'),
  ('public.cancel_job(uuid)', 'authenticated'), ('infernet.cancel_job(uuid)', 'authenticated'),
  ('public.register_node(jsonb,jsonb,text,boolean)', 'authenticated'), ('infernet.register_node(jsonb,jsonb,text,boolean)', 'authenticated'),
  ('public.failed_jobs(integer,timestamptz)', 'authenticated'), ('infernet.failed_jobs(integer,timestamptz)', 'authenticated'),
  ('public.retry_job(uuid)', 'authenticated'), ('infernet.retry_job(uuid)', 'authenticated'),
  ('public.discard_job(uuid)', 'authenticated'), ('infernet.discard_job(uuid)', 'authenticated'),
  ('public.submit_batch(uuid,text,jsonb,text,integer,numeric,integer,text,jsonb,integer,integer,integer)', 'authenticated'),
  ('infernet.submit_batch(uuid,text,jsonb,text,integer,numeric,integer,text,jsonb,integer,integer,integer)', 'authenticated'),
  ('public.get_batch(uuid,integer,integer)', 'authenticated'), ('infernet.get_batch(uuid,integer,integer)', 'authenticated'),
  ('public.list_batches(integer,timestamptz)', 'authenticated'), ('infernet.list_batches(integer,timestamptz)', 'authenticated'),
  ('public.cancel_batch(uuid)', 'authenticated'), ('infernet.cancel_batch(uuid)', 'authenticated'),
  ('public.explain_job(uuid)', 'authenticated'), ('infernet.explain_job(uuid)', 'authenticated'),
  ('public.forget_job(uuid)', 'authenticated'), ('infernet.forget_job(uuid)', 'authenticated'),
  ('public.check_histories(uuid,integer)', 'authenticated service_role'), ('infernet.operator_histories(uuid,integer)', 'authenticated'),
  ('infernet.check_histories(uuid,integer)', 'service_role'),
  ('public.heartbeat(uuid[],boolean,boolean)', 'authenticated'), ('infernet.heartbeat(uuid[],boolean,boolean)', 'authenticated'),
  ('public.claim_attempts(uuid[],boolean)', 'authenticated'), ('infernet.claim_attempts(uuid[],boolean)', 'authenticated'),
  ('public.start_attempt(uuid,uuid)', 'authenticated'), ('infernet.start_attempt(uuid,uuid)', 'authenticated'),
  ('public.complete_attempt(uuid,uuid,text,text,jsonb,jsonb)', 'authenticated'),
  ('infernet.complete_attempt(uuid,uuid,text,text,jsonb,jsonb)', 'authenticated'),
  ('public.start_attempts(uuid[],uuid[])', 'authenticated'), ('infernet.start_attempts(uuid[],uuid[])', 'authenticated'),
  ('public.complete_attempts(jsonb)', 'authenticated'), ('infernet.complete_attempts(jsonb)', 'authenticated'),
  ('public.fail_attempt(uuid,uuid,text,text,boolean)', 'authenticated'), ('infernet.fail_attempt(uuid,uuid,text,text,boolean)', 'authenticated'),
  ('public.leave()', 'authenticated'), ('infernet.leave()', 'authenticated'),
  ('public.node_status()', 'authenticated'), ('infernet.node_status()', 'authenticated'),
  ('public.acknowledge_command(uuid)', 'authenticated'), ('infernet.acknowledge_command(uuid)', 'authenticated'),
  ('public.finish_command(uuid,boolean,jsonb,text)', 'authenticated'), ('infernet.finish_command(uuid,boolean,jsonb,text)', 'authenticated'),
  ('public.drain_node(uuid,text)', 'authenticated'), ('infernet.drain_node(uuid,text)', 'authenticated'),
  ('public.resume_node(uuid)', 'authenticated'), ('infernet.resume_node(uuid)', 'authenticated'),
  ('public.set_maintenance(uuid,timestamptz,timestamptz,text)', 'authenticated'),
  ('infernet.set_maintenance(uuid,timestamptz,timestamptz,text)', 'authenticated'),
  ('public.command_node(uuid,text,jsonb,integer)', 'authenticated'), ('infernet.command_node(uuid,text,jsonb,integer)', 'authenticated'),
  ('public.list_nodes(text,integer)', 'authenticated'), ('infernet.list_nodes(text,integer)', 'authenticated'),
  ('public.get_node(text)', 'authenticated'), ('infernet.get_node(text)', 'authenticated'),
  ('public.cancel_command(uuid)', 'authenticated'), ('infernet.cancel_command(uuid)', 'authenticated'),
  ('public.grant_credit(uuid,text,numeric,text)', 'authenticated'), ('infernet.grant_credit(uuid,text,numeric,text)', 'authenticated'),
  ('public.set_node_approval(uuid,text)', 'authenticated'), ('infernet.set_node_approval(uuid,text)', 'authenticated'),
  ('public.set_user_status(text,text)', 'authenticated'), ('infernet.set_user_status(text,text)', 'authenticated'),
  ('public.set_consumer_limits(text,integer,integer,integer)', 'authenticated'),
  ('infernet.set_consumer_limits(text,integer,integer,integer)', 'authenticated'),
  ('public.set_setting(text,jsonb)', 'authenticated'), ('infernet.set_setting(text,jsonb)', 'authenticated'),
  ('public.prove_ledger()', 'authenticated'), ('infernet.operator_proof()', 'authenticated'),
  ('public.health()', 'authenticated service_role'), ('infernet.operator_health()', 'authenticated'), ('infernet.health()', 'service_role'),
  -- what policies call
  ('infernet.is_operator()', 'authenticated'), ('infernet.may_receive(text)', 'authenticated'), ('infernet.may_send(text)', 'authenticated'),
  ('infernet.usd(numeric)', 'authenticated'), ('infernet.price(numeric,numeric,numeric,bigint,bigint,bigint)', 'authenticated'),
  -- the platform's own
  ('public.consume_login(text,text,bigint,text,text,text,text,text)', 'service_role'),
  ('infernet.consume_login(text,text,bigint,text,text,text,text,text)', 'service_role'),
  ('public.ensure_operator(text,text)', 'service_role'), ('infernet.ensure_operator(text,text)', 'service_role'),
  ('public.tick()', 'service_role'), ('infernet.tick()', 'service_role'), ('infernet.prove_ledger()', 'service_role');

create function tests.callers() returns table (signature text, roles text)
language sql as $$
  select n.nspname || '.' || p.proname || '(' || replace(pg_get_function_identity_arguments(p.oid), '', '') || ')',
         string_agg(r.role, ' ' order by r.role)
  from pg_proc p join pg_namespace n on n.oid = p.pronamespace
  cross join unnest(array['public', 'anon', 'authenticated', 'service_role']) as r (role)
  where n.nspname in ('public', 'infernet') and has_function_privilege(r.role, p.oid, 'EXECUTE')
  group by n.nspname, p.proname, p.oid
$$;
select set_eq($$select p.oid, c.roles from (select signature, roles from expected_function) c join pg_proc p on p.oid = c.signature::regprocedure$$,
  $$select p.oid, string_agg(r.role, ' ' order by r.role) from pg_proc p join pg_namespace n on n.oid = p.pronamespace
    cross join unnest(array['public', 'anon', 'authenticated', 'service_role']) as r (role)
    where n.nspname in ('public', 'infernet') and has_function_privilege(r.role, p.oid, 'EXECUTE') group by p.oid$$,
  'each function is callable by these roles, and by no other');
select is_empty($$select p.oid::regprocedure from pg_proc p join pg_namespace n on n.oid = p.pronamespace
  where n.nspname = 'public' and p.prosecdef$$, 'nothing in public is security definer');
select is_empty($$select p.oid::regprocedure from pg_proc p join pg_namespace n on n.oid = p.pronamespace
  where n.nspname in ('public', 'infernet') and p.prosecdef and not coalesce(p.proconfig, '{}') @> array['search_path=""']$$, 'each definer function fixes its search_path');
select is_empty($$select p.oid::regprocedure from pg_proc p join pg_namespace n on n.oid = p.pronamespace
  where n.nspname = 'public' and not coalesce(p.proconfig, '{}') @> array['search_path=""']$$, 'so does each wrapper');
select is_empty($$select c.conrelid::regclass, c.conname from pg_constraint c join pg_namespace n on n.oid = c.connamespace
  where c.contype = 'f' and n.nspname in ('public', 'infernet') and not exists (
    select from pg_index i where i.indrelid = c.conrelid
      and (i.indkey::int2[])[0:cardinality(c.conkey) - 1] operator(pg_catalog.@>) c.conkey)$$, 'each foreign key has an index');

-- The lists notice what they are for.
create function public.planted() returns int language sql as 'select 1';
select isnt_empty($$select p.oid from pg_proc p join pg_namespace n on n.oid = p.pronamespace
  where n.nspname = 'public' and has_function_privilege('service_role', p.oid, 'EXECUTE') is not null
    and p.oid::regprocedure::text not in (select s.signature::regprocedure::text from expected_function s)$$, 'a new function would be seen');
drop function public.planted();
grant insert (title) on public.jobs to authenticated;
select isnt_empty($$select role, object, verbs from tests.privileges() where object = 'public.jobs' and verbs like '%INSERT%' and role = 'authenticated'$$, 'so would a planted grant on one column');
revoke insert (title) on public.jobs from authenticated;

-- ------------------------------------------------------------ rows: who sees whose

select tests.operator('olga'), tests.user('alice'), tests.user('bob'), tests.user('carol'), tests.user('dave');
select tests.node('n1', 'carol'), tests.node('n2', 'dave');
select tests.credit('alice', 5), tests.credit('bob', 5);
select tests.online('n1');
select tests.submit('alice', '00000000-0000-7000-8000-000000000001');
create temp table fixture as select id as attempt, tests.subject('n1') as node, gen_random_uuid() as command from public.job_attempts;
grant select on fixture to public;
select tests.start('n1', attempt, '11111111-1111-4111-8111-111111111111') from fixture;
select tests.complete('n1', attempt, '11111111-1111-4111-8111-111111111111') from fixture;
do $$
declare
  v_gang uuid;
  v_payout uuid;
  v_key infernet.keys;
begin
  foreach v_key.kind in array array['client', 'aggregator'] loop
    insert into infernet.keys values (tests.key(v_key.kind), gen_random_uuid(), v_key.kind) returning * into v_key;
    perform infernet.make_node(v_key, tests.user('carol'), v_key.kind);
  end loop;
  insert into public.node_commands (id, node_id, command, issued_by, expires_at)
  values ((select command from fixture), tests.subject('n1'), 'drain', tests.user('carol'), now() + interval '1 hour');
  insert into public.node_stops (node_id, owner_id, maintenance_from, maintenance_until, maintenance_by)
  values (tests.subject('n1'), tests.user('carol'), now() + interval '1 day', now() + interval '2 days', 'owner');
  insert into public.distributed_jobs (job_id, coordinator_id, strategy)
  values ('00000000-0000-7000-8000-000000000001', tests.subject('n1'), 'rpc') returning id into v_gang;
  insert into public.node_roles values (v_gang, 0, tests.subject('n1'), 'coordinator');
  insert into public.batches (id, consumer_id, kind, model_name, items, digest, created_at)
  values ('00000000-0000-7000-8000-00000000000b', tests.user('alice'), 'chat', 'm', 1, '', now());
  insert into public.platform_wallets (coin, network, address) values ('usdc', 'base', '0x0000000000000000000000000000000000000000');
  insert into public.provider_payouts (owner_id, coin, network, address)
  values (tests.user('carol'), 'usdc', 'base', '0x0000000000000000000000000000000000000001') returning id into v_payout;
  insert into public.payout_batches default values;
  insert into public.payment_transactions (direction, user_id, payout_id, coin, network, amount_usd)
  values ('outbound', tests.user('carol'), v_payout, 'usdc', 'base', 1);
end $$;

create function tests.rows(p_actor text, p_table text) returns text
language plpgsql as $$
declare
  v_count text;
begin
  case p_actor
    when 'anon', 'service_role' then perform tests.be_role(p_actor);
    when 'ghost' then
      perform set_config('request.jwt.claims', jsonb_build_object('sub', '99999999-9999-4999-8999-999999999999', 'role', 'authenticated')::text, true);
      set local role authenticated;
    else perform tests.be(p_actor);
  end case;
  begin
    execute format('select count(*)::text from public.%I', p_table) into v_count;
  exception when insufficient_privilege then
    v_count := '-';
  end;
  perform tests.be_nobody();
  return v_count;
end $$;
grant execute on function tests.rows(text, text) to public;

-- '-': refused; a number: rows seen of the fixture; '*': all there are.
create temp table expected_rows (tab text primary key, anon text, ghost text, bob text, n2 text, n1 text, carol text, alice text, olga text, service_role text);
insert into expected_rows values
  --                        anon  ghost bob   n2    n1    carol alice olga  service
  ('settings',              '-',  '0',  '0',  '0',  '0',  '0',  '0',  '*',  '*'),
  ('users',                 '-',  '0',  '1',  '0',  '0',  '1',  '1',  '*',  '*'),
  ('operators',             '-',  '0',  '0',  '0',  '0',  '0',  '0',  '*',  '*'),
  ('providers',             '-',  '0',  '0',  '1',  '1',  '1',  '0',  '*',  '*'),
  ('clients',               '-',  '0',  '0',  '0',  '0',  '1',  '0',  '*',  '*'),
  ('aggregators',           '-',  '0',  '0',  '0',  '0',  '1',  '0',  '*',  '*'),
  ('node_liveness',         '-',  '0',  '0',  '1',  '1',  '3',  '0',  '*',  '*'),
  ('node_stops',            '-',  '0',  '0',  '0',  '1',  '1',  '0',  '*',  '*'),
  ('models',                '1',  '1',  '1',  '1',  '1',  '1',  '1',  '*',  '*'),
  ('offers',                '1',  '1',  '1',  '1',  '1',  '1',  '1',  '*',  '*'),
  ('jobs',                  '-',  '0',  '0',  '0',  '0',  '0',  '1',  '*',  '*'),
  ('batches',               '-',  '0',  '0',  '0',  '0',  '0',  '1',  '*',  '*'),
  ('job_contents',          '-',  '0',  '0',  '0',  '0',  '0',  '1',  '0',  '*'),
  ('job_attempts',          '-',  '0',  '0',  '0',  '1',  '1',  '1',  '*',  '*'),
  ('job_events',            '-',  '0',  '0',  '0',  '0',  '0',  '*',  '*',  '*'),
  ('node_commands',         '-',  '0',  '0',  '0',  '1',  '1',  '0',  '*',  '*'),
  ('distributed_jobs',      '-',  '0',  '0',  '0',  '1',  '0',  '1',  '*',  '*'),
  ('node_roles',            '-',  '0',  '0',  '0',  '1',  '0',  '0',  '*',  '*'),
  ('ledger_accounts',       '-',  '0',  '3',  '0',  '0',  '3',  '3',  '*',  '*'),
  ('ledger_transfers',      '-',  '0',  '1',  '0',  '0',  '1',  '3',  '*',  '*'),
  ('ledger_entries',        '-',  '0',  '1',  '0',  '0',  '1',  '5',  '*',  '*'),
  ('ledger_holds',          '-',  '0',  '0',  '0',  '0',  '0',  '1',  '*',  '*'),
  ('ledger_statement',      '-',  '0',  '1',  '0',  '0',  '1',  '5',  '*',  '*'),
  ('platform_wallets',      '-',  '0',  '0',  '0',  '0',  '0',  '0',  '*',  '*'),
  ('provider_payouts',      '-',  '0',  '0',  '0',  '0',  '1',  '0',  '*',  '*'),
  ('payout_batches',        '-',  '0',  '0',  '0',  '0',  '0',  '0',  '*',  '*'),
  ('payment_transactions',  '-',  '0',  '0',  '0',  '0',  '1',  '0',  '*',  '*');
select set_eq('select tab from expected_rows', $$select split_part(object, '.', 2) from tests.tables() where object like 'public.%' and kind <> 'S'$$, 'each table of public has its line');
create function tests.everything(p_table text) returns text
language plpgsql as $$ declare v text; begin execute format('select count(*)::text from public.%I', p_table) into v; return v; end $$;
select is(tests.rows(a.actor, e.tab), case a.rows when '*' then tests.everything(e.tab) else a.rows end, a.actor || ' reads ' || e.tab)
from expected_rows e cross join lateral (values ('anon', e.anon), ('ghost', e.ghost), ('bob', e.bob), ('n2', e.n2), ('n1', e.n1), ('carol', e.carol),
  ('alice', e.alice), ('olga', e.olga), ('service_role', e.service_role)) as a (actor, rows)
order by e.tab, a.actor;
select isnt(tests.everything(e.tab), '0', e.tab || ' has rows, so that not seeing them means something') from expected_rows e;

-- Writes: nobody but service_role, into no table, by no verb.
create function tests.write(p_actor text, p_sql text) returns text
language plpgsql as $$
declare
  v_state text := 'done';
begin
  case p_actor when 'anon', 'service_role' then perform tests.be_role(p_actor); else perform tests.be(p_actor); end case;
  begin
    execute p_sql;
  exception when others then
    v_state := sqlstate;
  end;
  perform tests.be_nobody();
  return v_state;
end $$;
grant execute on function tests.write(text, text) to public;
select is(tests.write(a.actor, replace(v.sql, '%T', 'public.' || quote_ident(e.tab))), '42501', format('%s may not %s %s', a.actor, split_part(v.sql, ' ', 1), e.tab))
from expected_rows e cross join unnest(array['anon', 'bob', 'n1', 'n2', 'carol', 'alice', 'olga']) as a (actor)
cross join unnest(array['delete from %T', 'update %T set created_at = now()', 'insert into %T default values', 'truncate %T']) as v (sql)
where e.tab <> 'ledger_statement' and not (v.sql like 'update%' and not exists (
  select from pg_attribute t where t.attrelid = ('public.' || e.tab)::regclass and t.attname = 'created_at'))
order by 1;
select is(tests.write('service_role', replace(v.sql, '%T', t)), '42501', 'not even service_role may ' || replace(v.sql, '%T', t))
from unnest(array['public.ledger_accounts', 'public.ledger_entries', 'public.ledger_transfers', 'public.ledger_holds']) t
cross join unnest(array['delete from %T', 'insert into %T default values', 'truncate %T']) as v (sql);
select is(tests.write('service_role', 'update public.ledger_accounts set balance = 1'), '42501', 'not even service_role moves a balance by hand');

-- ------------------------------------------------------------ functions: what each actor gets

create temp table expected_call (call text primary key, anon text, ghost text, bob text, n2 text, n1 text, carol text, alice text, olga text);
insert into expected_call values
  --                                                                                    anon     ghost    bob      n2       n1       carol    alice    olga
  ('info()',                                                                            'done',  'done',  'done',  'done',  'done',  'done',  'done',  'done'),
  ('overview()',                                                                        'done',  'done',  'done',  'done',  'done',  'done',  'done',  'done'),
  ('provider_cards()',                                                                  'done',  'done',  'done',  'done',  'done',  'done',  'done',  'done'),
  ('whoami()',                                                                          '42501', 'PT401', 'done',  'done',  'done',  'done',  'done',  'done'),
  ('balance()',                                                                         '42501', 'PT401', 'done',  'PT401', 'PT401', 'done',  'done',  'done'),
  ('my_earnings()',                                                                     '42501', 'PT401', 'done',  'PT401', 'PT401', 'done',  'done',  'done'),
  ('make_enrolment()',                                                                  '42501', 'PT401', 'done',  'PT401', 'PT401', 'done',  'done',  'done'),
  ('quote_job(''m'', ''{"prompt":"x"}'')',                                              '42501', 'PT401', 'done',  'PT401', 'PT401', 'done',  'done',  'done'),
  ('submit_job(gen_random_uuid(), ''m'', ''{"prompt":"x"}'', ''completion'', p_max_cost => 0)', '42501', 'PT401', 'PT422', 'PT401', 'PT401', 'PT422', 'PT422', 'PT422'),
  ('get_job(''00000000-0000-7000-8000-000000000001'')',                                 '42501', 'PT401', 'PT404', 'PT401', 'PT401', 'PT404', 'done',  'PT404'),
  ('cancel_job(''00000000-0000-7000-8000-000000000001'')',                              '42501', 'PT401', 'PT404', 'PT401', 'PT401', 'PT404', 'done',  'PT404'),
  ('failed_jobs()',                                                                        '42501', 'PT401', 'done', 'PT401', 'PT401', 'done', 'done', 'done'),
  ('retry_job(''00000000-0000-7000-8000-000000000001'')',                                  '42501', 'PT401', 'PT404', 'PT401', 'PT401', 'PT404', 'PT409', 'PT404'),
  ('discard_job(''00000000-0000-7000-8000-000000000001'')',                                '42501', 'PT401', 'PT404', 'PT401', 'PT401', 'PT404', 'done', 'PT404'),
  ('submit_batch(gen_random_uuid(), ''m'', ''[]'')',                                       '42501', 'PT401', 'PT422', 'PT401', 'PT401', 'PT422', 'PT422', 'PT422'),
  ('get_batch(''00000000-0000-7000-8000-00000000000b'')',                                  '42501', 'PT401', 'PT404', 'PT401', 'PT401', 'PT404', 'done', 'PT404'),
  ('list_batches()',                                                                       '42501', 'PT401', 'done', 'PT401', 'PT401', 'done', 'done', 'done'),
  ('cancel_batch(''00000000-0000-7000-8000-00000000000b'')',                               '42501', 'PT401', 'PT404', 'PT401', 'PT401', 'PT404', 'done', 'PT404'),
  ('explain_job(''00000000-0000-7000-8000-000000000001'')',                                '42501', 'PT401', 'PT404', 'PT401', 'PT401', 'PT404', 'done', 'done'),
  ('forget_job(''00000000-0000-7000-8000-000000000001'')',                                 '42501', 'PT401', 'PT404', 'PT401', 'PT401', 'PT404', 'done', 'PT404'),
  ('check_histories()',                                                                    '42501', 'PT403', 'PT403', 'PT403', 'PT403', 'PT403', 'PT403', 'done'),
  ('register_node(''{}'', ''[{"model":"m"}]'')',                                        '42501', 'PT403', 'PT403', 'done',  'done',  'PT403', 'PT403', 'PT403'),
  ('heartbeat()',                                                                       '42501', 'PT403', 'PT403', 'done',  'done',  'PT403', 'PT403', 'PT403'),
  ('claim_attempts()',                                                                  '42501', 'PT403', 'PT403', 'done',  'done',  'PT403', 'PT403', 'PT403'),
  ('start_attempt((select attempt from fixture), gen_random_uuid())',                   '42501', 'PT403', 'PT403', 'PT404', 'PT409', 'PT403', 'PT403', 'PT403'),
  ('complete_attempt((select attempt from fixture), gen_random_uuid(), '''', ''stop'', ''{}'', ''{}'')', '42501', 'PT403', 'PT403', 'PT404', 'done', 'PT403', 'PT403', 'PT403'),
  ('fail_attempt((select attempt from fixture), gen_random_uuid(), ''shutdown'')',      '42501', 'PT403', 'PT403', 'PT404', 'done',  'PT403', 'PT403', 'PT403'),
  ('start_attempts(''{}'', ''{}'')',                                                       '42501', 'PT403', 'PT403', 'done', 'done', 'PT403', 'PT403', 'PT403'),
  ('complete_attempts(''[]'')',                                                            '42501', 'PT403', 'PT403', 'PT422', 'PT422', 'PT403', 'PT403', 'PT403'),
  ('leave()',                                                                           '42501', 'PT403', 'PT403', 'done',  'done',  'PT403', 'PT403', 'PT403'),
  ('node_status()',                                                                     '42501', 'PT403', 'PT403', 'done',  'done',  'PT403', 'PT403', 'PT403'),
  ('acknowledge_command((select command from fixture))',                                '42501', 'PT403', 'PT403', 'PT404', 'done',  'PT403', 'PT403', 'PT403'),
  ('finish_command((select command from fixture), true)',                               '42501', 'PT403', 'PT403', 'PT404', 'done',  'PT403', 'PT403', 'PT403'),
  ('list_nodes()',                                                                      '42501', 'PT401', 'done',  'PT401', 'PT401', 'done',  'done',  'done'),
  ('get_node((select node::text from fixture))',                                        '42501', 'PT401', 'PT404', 'PT401', 'PT401', 'done',  'PT404', 'done'),
  ('drain_node((select node from fixture), ''x'')',                                     '42501', 'PT401', 'PT404', 'PT401', 'PT401', 'done',  'PT404', 'done'),
  ('resume_node((select node from fixture))',                                           '42501', 'PT401', 'PT404', 'PT401', 'PT401', 'done',  'PT404', 'done'),
  ('set_maintenance((select node from fixture), null, now() + interval ''1 hour'')',    '42501', 'PT401', 'PT404', 'PT401', 'PT401', 'done',  'PT404', 'done'),
  ('command_node((select node from fixture), ''resume'')',                              '42501', 'PT401', 'PT404', 'PT401', 'PT401', 'done',  'PT404', 'done'),
  ('cancel_command((select command from fixture))',                                     '42501', 'PT401', 'PT404', 'PT401', 'PT401', 'done',  'PT404', 'done'),
  ('grant_credit(gen_random_uuid(), repeat(''0'', 64), 1)',                             '42501', 'PT403', 'PT403', 'PT403', 'PT403', 'PT403', 'PT403', 'PT404'),
  ('set_node_approval(gen_random_uuid(), ''approved'')',                                '42501', 'PT403', 'PT403', 'PT403', 'PT403', 'PT403', 'PT403', 'PT404'),
  ('set_user_status(repeat(''0'', 64), ''active'')',                                    '42501', 'PT403', 'PT403', 'PT403', 'PT403', 'PT403', 'PT403', 'PT404'),
  ('set_consumer_limits(repeat(''0'', 64))',                                             '42501', 'PT403', 'PT403', 'PT403', 'PT403', 'PT403', 'PT403', 'PT404'),
  ('set_setting(''fee_rate'', ''0.05'')',                                               '42501', 'PT403', 'PT403', 'PT403', 'PT403', 'PT403', 'PT403', 'done'),
  ('prove_ledger()',                                                                    '42501', 'PT403', 'PT403', 'PT403', 'PT403', 'PT403', 'PT403', 'done'),
  ('health()',                                                                          '42501', 'PT403', 'PT403', 'PT403', 'PT403', 'PT403', 'PT403', 'done'),
  ('consume_login(repeat(''0'', 64), repeat(''1'', 64), 0, ''user'')',                  '42501', '42501', '42501', '42501', '42501', '42501', '42501', '42501'),
  ('ensure_operator(repeat(''1'', 64))',                                                '42501', '42501', '42501', '42501', '42501', '42501', '42501', '42501'),
  ('tick()',                                                                            '42501', '42501', '42501', '42501', '42501', '42501', '42501', '42501');
select set_eq($$select split_part(call, '(', 1) from expected_call$$, $$select p.proname::text from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname = 'public'$$,
  'each call of the API has its line');
create function tests.call(p_actor text, p_call text) returns text
language plpgsql as $$
declare
  v_state text := 'done';
begin
  case p_actor
    when 'anon' then perform tests.be_role('anon');
    when 'ghost' then
      perform set_config('request.jwt.claims', jsonb_build_object('sub', '99999999-9999-4999-8999-999999999999', 'role', 'authenticated')::text, true);
      set local role authenticated;
    else perform tests.be(p_actor);
  end case;
  begin
    execute 'select public.' || p_call;
    raise exception sqlstate 'ZZ000';
  exception when sqlstate 'ZZ000' then
    v_state := 'done';
  when others then
    v_state := sqlstate;
  end;
  perform tests.be_nobody();
  return v_state;
end $$;
grant execute on function tests.call(text, text) to public;
select is(tests.call(a.actor, e.call), a.state, a.actor || ' calls ' || e.call)
from expected_call e cross join lateral (values ('anon', e.anon), ('ghost', e.ghost), ('bob', e.bob), ('n2', e.n2), ('n1', e.n1), ('carol', e.carol),
  ('alice', e.alice), ('olga', e.olga)) as a (actor, state)
order by e.call, a.actor;
select * from finish();
rollback;
