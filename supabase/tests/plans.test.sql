-- How hot calls find what they look for, in a market with a history: 300,000 jobs, 30,000 of them waiting for
-- 200 models, 2,000 nodes, 4,000 offers. Under generic plans, none of them may scan a large table, and
-- each may touch only so many pages; without the index that it needs, each is seen to do more.
--
-- The functions themselves are measured, not copies of their statements: EXPLAIN counts the pages of all that
-- a call does, and PostgreSQL counts scans by table. As supabase_admin, for which history is written fast.
\c - supabase_admin
\set ON_ERROR_STOP 1
set client_min_messages = warning;
set search_path = public, extensions;
begin;
\ir actors.psql
\ir ../../bench/market/load.sql
select no_plan();

select load.stop_tick();
select load.people('big', 200), load.nodes('big', 2000, 200, 20, 2);
select load.plan_finished('big', 268000), load.plan_running('big', 0, 99, 1), load.plan_queued('big', 0, 199, 30000);
analyze load.plan;
select load.write_jobs();
-- What waits and runs has its money.
insert into public.ledger_holds (id, consumer_id, amount, open_jobs, created_at)
select hold_id, consumer_id, price_cap, 1, created_at from public.jobs where ended_at is null;
update public.ledger_accounts set balance = 1000000 where kind = 'held';
insert into infernet.failed_jobs (job_id, consumer_id, failed_at)
select id, consumer_id, ended_at from public.jobs where ended_at is not null order by id limit 20000;
-- Nobody is spared, and nothing is due, unless a test says so.
update public.node_liveness set lease_until = now() + interval '1 day', last_seen = now();
update infernet.pulse set last_tick = now() + interval '1 hour';
set plan_cache_mode = force_generic_plan;

create function tests.large() returns oid[]
language sql stable as $$ select array_agg(t.name::regclass::oid) from unnest(array['public.jobs', 'public.job_contents', 'public.job_attempts',
  'public.job_events', 'infernet.queue', 'infernet.live_attempts', 'infernet.failed_jobs', 'public.offers', 'infernet.offer_load',
  'public.providers', 'public.node_liveness', 'public.ledger_accounts', 'public.ledger_holds', 'public.users', 'infernet.keys',
  'infernet.turns']) t (name) $$;
create function tests.scans() returns jsonb
language sql volatile as $$ select jsonb_object_agg(s.relname, s.seq_scan) from pg_stat_xact_all_tables s where s.relid = any (tests.large()) $$;
-- What a call does, which is undone: the pages that it touches, and the large tables that it scans. It is called
-- before it is measured, so that plans are made.
create function tests.measure(p_call text, p_drop text, out answer text, out pages int, out scanned text)
language plpgsql as $$
declare
  v_before jsonb;
  v_plan   json;
begin
  begin
    if p_drop is not null then
      execute 'drop index ' || p_drop;
    end if;
    begin
      execute 'select ' || p_call into answer;
      raise exception sqlstate 'ZZ000';
    exception when sqlstate 'ZZ000' then null;
    end;
    v_before := tests.scans();
    execute 'explain (analyze, buffers, format json) select ' || p_call into v_plan;
    pages := (v_plan -> 0 -> 'Plan' ->> 'Shared Hit Blocks')::int + (v_plan -> 0 -> 'Plan' ->> 'Shared Read Blocks')::int;
    select string_agg(a.key, ' ' order by a.key) into scanned from jsonb_each_text(tests.scans()) a
    where a.value::bigint > coalesce((v_before ->> a.key)::bigint, 0);
    raise exception sqlstate 'ZZ000';
  exception when sqlstate 'ZZ000' then null;
  end;
end $$;

-- The actors: a consumer, a node that runs a job and one that does not, an offer whose model's line is long.
create temp table actor as
select w.consumer_id as consumer, r.provider_id as node, f.id as offer, f.model_id, w.job_id as waiting, r.attempt_id as attempt
from (select l.* from infernet.live_attempts l order by l.job_id limit 1) r
cross join (select o.* from load.offers o where o.model = 150 order by o.n limit 1) f
cross join lateral (select q.* from infernet.queue q where q.model_id = f.model_id and q.ready_at is null order by q.tag, q.job_id limit 1) w;
grant select on actor to public;
create function tests.next_ids(p_offer uuid) returns int language sql volatile as $$
  select cardinality(infernet.next_ids(o, 4, infernet.settings_now())) from public.offers o where o.id = p_offer $$;
create function tests.candidates(p_job uuid) returns int language sql volatile as $$
  select cardinality((infernet.candidates(j, infernet.settings_now())).offers) from public.jobs j where j.id = p_job $$;
create function tests.as_subject(p_subject uuid, p_call text) returns jsonb
language plpgsql as $$
declare
  v_result jsonb;
begin
  perform set_config('request.jwt.claims', jsonb_build_object('sub', p_subject, 'role', 'authenticated')::text, true);
  set local role authenticated;
  execute 'select to_jsonb((' || p_call || '))' into v_result;
  perform tests.be_nobody();
  return v_result;
end $$;
create function tests.submit_one() returns jsonb language sql volatile as $$
  select tests.as_subject(consumer, format('public.submit_job(gen_random_uuid(), %L, ''{"messages":[{"role":"user","content":"x"}]}'', p_max_cost => 1)',
    (select name from public.models where id = model_id))) from actor $$;
-- So many of a kind that are due.
create function tests.make_due(p_what text) returns void
language plpgsql as $$
begin
  case p_what
    when 'delayed' then
      update infernet.queue set ready_at = now() - interval '1 second', tag = -1 where job_id in (select q.job_id from infernet.queue q order by q.job_id limit 10);
    when 'expired' then
      update infernet.queue set deadline_at = now() - interval '1 second' where job_id in (select q.job_id from infernet.queue q order by q.job_id limit 10);
    when 'late' then
      update infernet.live_attempts set due_at = now() - interval '1 second' where job_id in (select l.job_id from infernet.live_attempts l order by l.job_id limit 10);
      update public.jobs j set deadline_at = now() - interval '1 second' from infernet.live_attempts l where l.job_id = j.id and l.due_at < now();
    when 'lost' then
      update public.node_liveness set lease_until = now() - interval '1 second' where node_id in (select l.provider_id from infernet.live_attempts l order by l.job_id limit 10);
  end case;
end $$;
-- What is measured: after what is made due, a call, what it answers at least (null: whatever), the most pages
-- that it may touch, and the index without which it is seen to do more.
create temp table hot (n serial, name text, due text, call text, least int, pages int, index text);
insert into hot (name, due, call, least, pages, index)
select h.name, h.due, replace(replace(replace(replace(replace(replace(h.call, '%consumer', quote_literal(a.consumer)), '%node', quote_literal(a.node)),
       '%offer', quote_literal(a.offer)), '%model', quote_literal(a.model_id)), '%waiting', quote_literal(a.waiting)), '%attempt', quote_literal(a.attempt)),
       h.least, h.pages, h.index
from actor a cross join (values
  ('the next jobs of a line',     null,      'tests.next_ids(%offer)', 4, 200, 'infernet.queue_line'),
  ('the time of a line',          null,      'infernet.take_tags(%consumer, %model, 0::smallint, 1, now())', null, 60, 'infernet.queue_line'),
  ('one''s own turns in a line',  null,      'infernet.take_tags(%consumer, %model, 0::smallint, 1, now())', null, 60, 'infernet.queue_consumer'),
  ('the candidates of a job',     null,      'tests.candidates(%waiting)', 20, 400, 'public.offers_market'),
  ('the load of candidates',      null,      'tests.candidates(%waiting)', 20, 400, 'infernet.live_attempts_offer'),
  ('filling an offer',            null,      'cardinality(infernet.fill_offer(%offer, 2, false, infernet.settings_now()))', 2, 400, 'infernet.queue_line'),
  ('the work of a node',          null,      'infernet.node_work(%node, array[%attempt]::uuid[], now())', null, 30, 'infernet.live_attempts_node'),
  ('how many jobs of one run',    null,      'infernet.room_to_run(%consumer, infernet.settings_now())', 900, 60, 'infernet.live_attempts_consumer'),
  ('a heartbeat',                 null,      'tests.as_subject(%node, $c$public.heartbeat(array[%attempt]::uuid[])$c$)', null, 800, 'infernet.live_attempts_node'),
  ('a claim',                     null,      'tests.as_subject(%node, $c$public.claim_attempts()$c$)', null, 800, 'infernet.live_attempts_node'),
  ('a submit',                    null,      'tests.submit_one()', null, 700, 'public.offers_market'),
  ('a look at a waiting job',     null,      'tests.as_subject(%consumer, $c$public.get_job(%waiting)$c$)', null, 300, 'infernet.queue_line'),
  ('joining lines, none',         null,      'infernet.join_lines(now(), 200)', null, 20, 'infernet.queue_ready'),
  ('joining lines, ten',          'delayed', 'infernet.join_lines(now(), 200)', 10, 1000, 'infernet.queue_ready'),
  ('deadlines in lines, none',    null,      'infernet.sweep_queue(now(), 200)', null, 20, 'infernet.queue_deadline'),
  ('deadlines in lines, ten',     'expired', 'infernet.sweep_queue(now(), 200)', 10, 2500, 'infernet.queue_deadline'),
  ('due attempts, none',          null,      'infernet.sweep_attempts(now(), now(), 200)', null, 40, 'infernet.live_attempts_due'),
  ('due attempts, ten',           'late',    'infernet.sweep_attempts(now(), now(), 200)', 10, 3200, 'infernet.live_attempts_due'),
  ('lost nodes, none',            null,      'infernet.sweep_nodes(now(), 200)', null, 9000, null),
  ('lost nodes, ten',             'lost',    'infernet.sweep_nodes(now(), 200)', 10, 16000, null),
  ('dispatching fifty',           null,      '(select d.dispatched from infernet.dispatch(''00000000-0000-0000-0000-000000000000'', 50, 50) d)', 50, 20000, 'infernet.queue_line'),
  ('retention, nothing',          null,      'infernet.retain(now(), infernet.settings_now())', null, 80, 'public.jobs_ended'),
  ('retention, a round',          null,      '(infernet.retain(now() + interval ''27 days'', infernet.settings_now()) -> ''forgotten'')', 200, 20000, 'public.jobs_ended'),
  ('what has failed',             null,      'tests.as_subject(%consumer, $c$public.failed_jobs(20)$c$)', null, 400, 'infernet.failed_jobs_consumer'),
  ('one''s own jobs',             null,      'tests.as_subject(%consumer, $c$(select array_agg(j.id) from (select id from public.jobs where consumer_id = %consumer order by created_at desc, id desc limit 20) j)$c$)',
                                                                                                                                        null, 400, 'public.jobs_consumer')
) as h (name, due, call, least, pages, index);

create function tests.seen(p_due text, p_call text, p_drop text, out answer text, out pages int, out scanned text)
language plpgsql as $$
begin
  if p_due is not null then
    perform tests.make_due(p_due);
  end if;
  select m.answer, m.pages, m.scanned into answer, pages, scanned from tests.measure(p_call, p_drop) m;
  raise exception sqlstate 'ZZ000';
exception when sqlstate 'ZZ000' then null;
end $$;

-- Before there are statistics, and with them.
create temp table found as
select 'without statistics' as time, h.*, s.answer, s.pages as touched, s.scanned from hot h cross join lateral tests.seen(h.due, h.call, null) s order by h.n;
analyze;
insert into found
select 'with statistics', h.*, s.answer, s.pages, s.scanned from hot h cross join lateral tests.seen(h.due, h.call, null) s order by h.n;
select is(scanned, null, format('%s: %s scans no large table', time, name)) from found where name not like 'lost nodes%' order by time, n;
-- Whose lease has run out is found by reading all nodes and what they run, and nothing else.
select is((select string_agg(t, ' ') from unnest(string_to_array(scanned, ' ')) t where t <> all (array['providers', 'node_liveness', 'live_attempts'])), null,
  format('%s: %s scans no table of the history', time, name)) from found where name like 'lost nodes%' order by time, n;
select cmp_ok(touched, '<=', pages, format('%s: %s touches %s pages', time, name, touched)) from found order by time, n;
select cmp_ok(answer::int, '>=', least, format('%s: %s answers %s', time, name, answer)) from found where least is not null order by time, n;

-- The same where each index is missing: a large table is scanned, or more is read.
create temp table without as
select h.n, h.name, h.index, h.pages, s.pages as touched, s.scanned from hot h cross join lateral tests.seen(h.due, h.call, h.index) s
where h.index is not null order by h.n;
select ok(scanned is not null or touched > pages, format('without %s, %s reads more: %s pages%s', index, name, touched, ', and scans ' || scanned)) from without order by n;

select * from finish();
rollback;
-- What was rolled back would slow the tests that follow.
vacuum;
