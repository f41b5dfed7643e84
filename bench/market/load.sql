-- A market of any size with any history, made fast: for the benchmarks, and for tests of plans. Run as
-- the cluster's superuser. It makes a schema of functions; the caller chooses the numbers:
--
--   select load.people('big', 1000);                    consumers with a million dollars each
--   select load.nodes('big', 10000, 1000, 20, 3);       nodes, models and offers, registered by the calls
--   select load.plan_finished('big', 1000000);          jobs that were completed and paid
--   select load.plan_running('big', 500, 999, 3);       three running jobs on each offer of these models
--   select load.plan_queued('big', 500, 999, 100000);   jobs that wait for these models
--   select load.write_jobs(); select load.write_money(); select load.forget_plan();
--
-- The two that write can run at the same time, on two connections. They write what the functions of the
-- market would have, but by statement and not by job: the ledger balances, a job that has not ended has
-- its hold, events are chained. Triggers, foreign keys and the indexes of the large tables are off
-- meanwhile.
--
-- A world is a name before all others, so that several of different sizes can live in one database.

create schema load;

create table load.consumers (world text, n int, id uuid not null, primary key (world, n));
create table load.offers (
  world text, n int, id uuid not null, model int not null, model_id uuid not null, model_name text not null,
  provider_id uuid not null, provider_name text not null, public_key text not null, owner_id uuid not null,
  price_input numeric not null, price_output numeric not null, primary key (world, n));
create index on load.offers (world, model);

-- One row a job that is to be written, in the order of their lives.
create sequence load.plan_n;
create unlogged table load.plan (
  n           bigint primary key default nextval('load.plan_n'),
  state       public.job_state not null,
  consumer_id uuid not null,
  model_id    uuid not null,
  model_name  text not null,
  offer       load.offers,
  tag         bigint,
  cap         numeric(38,12) not null,
  cost        numeric(38,12) not null default 0,
  earned      numeric(38,12) not null default 0,
  created_at  timestamptz not null,
  job_id      uuid not null,
  attempt_id  uuid not null default gen_random_uuid()
);

create function load.key(p_world text, p_what text, p_number int) returns text
language sql immutable parallel safe as $$
  select encode(sha256(convert_to(format('%s %s %s', p_world, p_what, p_number), 'UTF8')), 'hex')
$$;

-- A UUID of version 7 for a job of that time.
create function load.job_id(p_at timestamptz) returns uuid
language sql volatile as $$
  select (lpad(to_hex((extract(epoch from p_at) * 1000)::bigint), 12, '0') || '7'
          || substr(replace(gen_random_uuid()::text, '-', ''), 14))::uuid
$$;

-- ---------------------------------------------------------------- people and nodes

create function load.people(p_world text, p_consumers int) returns void
language plpgsql as $$
begin
  insert into load.consumers (world, n, id)
  select p_world, i, infernet.ensure_user(load.key(p_world, 'consumer', i), format('%s consumer %s', p_world, i))
  from generate_series(0, p_consumers - 1) i;
  perform infernet.post_transfer(gen_random_uuid(), 'grant',
    array[infernet.account('goodwill', null), infernet.account('available', c.id)], array[-1e6, 1e6])
  from load.consumers c where c.world = p_world;
end $$;

-- Makes nodes, two an owner, and registers each with its offers: offer o is of model o / p_offers, on
-- node o % p_nodes, so that a node has as many offers as models x offers / nodes. Prices lie within a
-- tenth of each other.
create function load.nodes(p_world text, p_nodes int, p_models int, p_offers int, p_slots int) returns void
language plpgsql as $$
declare
  v_node   infernet.keys;
  v_offers jsonb;
begin
  if p_models * p_offers % p_nodes <> 0 or p_offers > p_nodes then
    raise exception '% models x % offers do not spread over % nodes', p_models, p_offers, p_nodes;
  end if;
  for i in 0 .. p_nodes - 1 loop
    insert into infernet.keys (public_key, subject, kind)
    values (load.key(p_world, 'node', i), gen_random_uuid(), 'provider') returning * into v_node;
    perform infernet.make_node(v_node,
      infernet.ensure_user(load.key(p_world, 'owner', i / 2), format('%s owner %s', p_world, i / 2)),
      format('%s node %s', p_world, i));
    update public.providers set approval = 'approved' where id = v_node.subject and approval <> 'approved';
    select jsonb_agg(jsonb_build_object('model', format('%s/model-%s', p_world, o / p_offers), 'slots', p_slots,
             'price_input', 0.1 + (o * 7 % 20) * 0.0005, 'price_output', 0.4 + (o * 11 % 20) * 0.002))
    into v_offers from generate_series(i, p_models * p_offers - 1, p_nodes) o;
    perform set_config('request.jwt.claims',
      jsonb_build_object('sub', v_node.subject, 'role', 'authenticated', 'kind', 'node')::text, true);
    perform public.register_node('{"platform":"linux"}', v_offers, 'bench');
  end loop;
  perform set_config('request.jwt.claims', '', true);
  insert into load.offers
  select p_world, m.n * p_offers + row_number() over (partition by m.n order by o.id) - 1, o.id, m.n, o.model_id, m.name,
         o.provider_id, p.name, p.public_key, p.owner_id, o.price_input, o.price_output
  from (select d.id, d.name, substring(d.name from '[0-9]+$')::int as n from public.models d
        where d.name like p_world || '/model-%') m
  join public.offers o on o.model_id = m.id
  join public.providers p on p.id = o.provider_id;
end $$;

-- ---------------------------------------------------------------- plans

-- What a job of the benchmark costs at most on an offer, and what it costs in the end.
create function load.cap(p_offer load.offers) returns numeric
language sql immutable parallel safe as $$
  select round(2 * (300 * (p_offer).price_input + 256 * (p_offer).price_output) / 1e6, 12)
$$;
create function load.cost(p_offer load.offers) returns numeric
language sql immutable parallel safe as $$
  select round((40 * (p_offer).price_input + 90 * (p_offer).price_output) / 1e6, 12)
$$;

create function load.count_of(p_world text) returns table (consumers int, offers int)
language sql stable as $$
  select (select count(*)::int from load.consumers c where c.world = p_world),
         (select count(*)::int from load.offers o where o.world = p_world)
$$;

-- Jobs of the last five days, all completed: consumers and offers in turn.
create function load.plan_finished(p_world text, p_count int) returns void
language sql as $$
  insert into load.plan (state, consumer_id, model_id, model_name, offer, cap, cost, earned, created_at, job_id)
  select 'completed', c.id, o.model_id, o.model_name, o, load.cap(o), load.cost(o), trunc(load.cost(o) * 0.95, 12), t.at,
         load.job_id(t.at)
  from load.count_of(p_world) k
  cross join lateral generate_series(0, p_count - 1) i
  cross join lateral (select now() - interval '5 days' + i * (interval '119 hours' / p_count) as at) t
  join load.consumers c on c.world = p_world and c.n = i % k.consumers
  join load.offers o on o.world = p_world and o.n = i::bigint * 7919 % k.offers
  order by i
$$;

-- So many running jobs on each offer of some models.
create function load.plan_running(p_world text, p_first int, p_last int, p_each int) returns void
language sql as $$
  insert into load.plan (state, consumer_id, model_id, model_name, offer, cap, created_at, job_id)
  select 'running', c.id, o.model_id, o.model_name, o, load.cap(o), now(), load.job_id(now())
  from load.count_of(p_world) k
  join load.offers o on o.world = p_world and o.model between p_first and p_last
  cross join generate_series(1, p_each) i
  join load.consumers c on c.world = p_world and c.n = (o.n * p_each + i) % k.consumers
$$;

-- Jobs that wait for some models in turn, those of each model of consumers in turn.
create function load.plan_queued(p_world text, p_first int, p_last int, p_count int) returns void
language sql as $$
  with first as materialized (
    select distinct on (o.model) o.* from load.offers o
    where o.world = p_world and o.model between p_first and p_last order by o.model, o.n
  )
  insert into load.plan (state, consumer_id, model_id, model_name, tag, cap, created_at, job_id)
  select 'queued', c.id, o.model_id, o.model_name, j.turn / k.consumers, load.cap(f), now(), load.job_id(now())
  from load.count_of(p_world) k
  cross join lateral generate_series(0, p_count - 1) i
  cross join lateral (select p_first + i % (p_last - p_first + 1) as model, i / (p_last - p_first + 1) as turn) j
  join load.consumers c on c.world = p_world and c.n = (j.turn + 7 * j.model) % k.consumers
  join first o on o.model = j.model
  join load.offers f on f.world = p_world and f.n = o.n
  order by i
$$;

-- Jobs of one consumer that all wait for one model.
create function load.plan_flood(p_world text, p_consumer int, p_model int, p_count int) returns void
language sql as $$
  insert into load.plan (state, consumer_id, model_id, model_name, tag, cap, created_at, job_id)
  select 'queued', c.id, o.model_id, o.model_name, i, load.cap(o), now(), load.job_id(now())
  from generate_series(0, p_count - 1) i
  join load.consumers c on c.world = p_world and c.n = p_consumer
  join load.offers o on o.world = p_world and o.model = p_model and o.n = (
    select min(f.n) from load.offers f where f.world = p_world and f.model = p_model)
  order by i
$$;

create function load.forget_plan() returns void
language sql as $$ truncate load.plan $$;

-- ---------------------------------------------------------------- writing

-- Waits for a tick to end, and keeps others from running until the caller commits: a tick reads in its own
-- order what is locked here.
create function load.stop_tick() returns void
language sql as $$ select pg_advisory_xact_lock_shared(hashtextextended('infernet.tick', 0)) $$;

-- Keeps the indexes of a table from being written to, until load.index() makes them anew.
create function load.unindex(p_table regclass) returns void
language sql as $$ update pg_catalog.pg_index set indisready = false, indisvalid = false where indrelid = p_table $$;

create function load.index(p_table regclass) returns void
language plpgsql as $$
begin
  update pg_catalog.pg_index set indisready = true, indisvalid = true where indrelid = p_table;
  execute format('reindex table %s', p_table);
end $$;

-- Writes jobs, contents, attempts, queue, live attempts and events of the plan.
create function load.write_jobs() returns void
language plpgsql
set session_replication_role = replica set work_mem = '256MB' set maintenance_work_mem = '512MB' set synchronous_commit = off as $$
declare
  v_tables regclass[] := array['public.jobs', 'public.job_contents', 'public.job_attempts', 'public.job_events',
                               'infernet.queue', 'infernet.live_attempts'];
  v_prompt text := 'Explain in a few sentences why the sky is blue during the day and red in the evening, for '
                   'somebody who has never heard of scattering. Number: ';
  v_output text := repeat('Sunlight is a mixture of all colours, and the short waves are scattered most. ', 5);
  v_sha256 text := encode(sha256(convert_to(v_output, 'UTF8')), 'hex');
  v_digest bytea := sha256('choice');
begin
  perform load.stop_tick();
  perform load.unindex(t) from unnest(v_tables) t;

  -- Each event with the digest of the one before it; `offset 0` keeps each from being computed again for
  -- every later one.
  create temp table chain on commit drop as
  select p.n, d.submitted, d.completed, d.done_at, e1.digest as digest_1, e2.digest as digest_2, e3.digest as digest_3,
         e4.digest as digest_4, d.events,
         case d.events when 1 then e1.digest when 3 then e3.digest else e4.digest end as digest
  from load.plan p
  cross join lateral (select p.created_at + interval '2 seconds' as done_at,
    jsonb_build_object('cap', p.cap::text, 'digest', encode(sha256(uuid_send(p.job_id)), 'hex')) as submitted,
    jsonb_build_object('cost', p.cost::text) as completed,
    case p.state when 'queued' then 1 when 'running' then 3 else 4 end as events offset 0) d
  cross join lateral (select infernet.event_digest(null, p.job_id, 1, null, 'submitted', d.submitted, p.created_at) as digest offset 0) e1
  cross join lateral (select infernet.event_digest(e1.digest, p.job_id, 2, p.attempt_id, 'assigned', '{}', p.created_at) as digest offset 0) e2
  cross join lateral (select infernet.event_digest(e2.digest, p.job_id, 3, p.attempt_id, 'running', '{}', p.created_at) as digest offset 0) e3
  cross join lateral (select infernet.event_digest(e3.digest, p.job_id, 4, p.attempt_id, 'completed', d.completed, d.done_at) as digest offset 0) e4;
  analyze chain;

  insert into public.jobs (id, consumer_id, hold_id, kind, state, model_id, model_name, input_bound, max_tokens, price_cap, digest,
    attempt_id, attempts, max_attempts, deadline_secs, deadline_at, provider_id, payment_offer, cost, input_tokens, output_tokens,
    finish, created_at, started_at, ended_at, events, events_digest)
  select p.job_id, p.consumer_id, p.job_id, 'chat', p.state, p.model_id, p.model_name, 300, 256, p.cap,
         sha256(uuid_send(p.job_id)), case when p.state <> 'queued' then p.attempt_id end, (p.state <> 'queued')::int, 3, 86400,
         p.created_at + interval '1 day', case when d.done then (p.offer).provider_id end, p.cap, case when d.done then p.cost end,
         case when d.done then 40 end, case when d.done then 90 end, case when d.done then 'stop' end,
         p.created_at, case when p.state <> 'queued' then p.created_at end, case when d.done then c.done_at end, c.events, c.digest
  from load.plan p join chain c using (n) cross join lateral (select p.state = 'completed' as done) d order by p.n;

  insert into public.job_events (job_id, seq, attempt_id, event, data, created_at, digest)
  select p.job_id, e.seq, e.attempt_id, e.event, e.data, e.at, e.digest
  from load.plan p join chain c using (n)
  cross join lateral (values
    (1, null, 'submitted', c.submitted, p.created_at, c.digest_1),
    (2, p.attempt_id, 'assigned', '{}', p.created_at, c.digest_2),
    (3, p.attempt_id, 'running', '{}', p.created_at, c.digest_3),
    (4, p.attempt_id, 'completed', c.completed, c.done_at, c.digest_4)
  ) as e (seq, attempt_id, event, data, at, digest)
  where e.seq <= c.events;

  insert into public.job_contents (job_id, input, input_sha256, output, output_sha256)
  select p.job_id, i.input, encode(sha256(convert_to(i.input::text, 'UTF8')), 'hex'),
         case when p.state = 'completed' then v_output end, case when p.state = 'completed' then v_sha256 end
  from load.plan p
  cross join lateral (select jsonb_build_object('messages',
    jsonb_build_array(jsonb_build_object('role', 'user', 'content', v_prompt || p.n))) as input) i
  order by p.n;

  insert into public.job_attempts (id, job_id, number, offer_id, provider_id, provider_name, owner_id, state, lease, price_input,
    price_output, fee_rate, at_submit, choice, offered_at, started_at, ended_at, cost, earned, reported, receipt)
  select p.attempt_id, p.job_id, 1, (p.offer).id, (p.offer).provider_id, (p.offer).provider_name, (p.offer).owner_id,
         p.state::text::public.attempt_state, gen_random_uuid(), (p.offer).price_input, (p.offer).price_output, 0.05, true,
         jsonb_build_object('by', 'score', 'seen', 20, 'best', jsonb_build_array((p.offer).provider_id)),
         p.created_at, p.created_at, case when d.done then p.created_at + interval '2 seconds' end,
         case when d.done then p.cost end, case when d.done then p.earned end,
         case when d.done then '{"input_tokens": 40, "output_tokens": 90}'::jsonb end,
         case when d.done then jsonb_build_object('id', (p.offer).public_key, 'kind', 27237, 'pubkey', (p.offer).public_key,
           'created_at', 1700000000, 'tags', '[]'::jsonb, 'content', format(
             '{"job": "%s", "attempt": "%s", "node": "%s", "model": "%s", "finish": "stop", "input_tokens": 40, "output_tokens": 90}',
             p.job_id, p.attempt_id, (p.offer).public_key, p.model_name),
           'sig', (p.offer).public_key || v_sha256) end
  from load.plan p cross join lateral (select p.state = 'completed' as done) d
  where p.state <> 'queued' order by p.n;

  -- They were the first of their lines.
  insert into infernet.live_attempts (job_id, attempt_id, offer_id, provider_id, consumer_id, due_at, model_id, priority, tag)
  select p.job_id, p.attempt_id, (p.offer).id, (p.offer).provider_id, p.consumer_id, p.created_at + interval '1 day', p.model_id, 0, 0
  from load.plan p where p.state = 'running' order by p.n;

  insert into infernet.queue (job_id, consumer_id, model_id, priority, tag, deadline_at, input_bound, max_tokens, max_seconds,
    price_cap, min_vram_gb, labels, exclude, failed_on)
  select p.job_id, p.consumer_id, p.model_id, 0, p.tag, p.created_at + interval '1 day', 300, 256, 0, p.cap, 0, '{}', '{}', '{}'
  from load.plan p where p.state = 'queued' order by p.n;
  insert into infernet.turns as t (consumer_id, model_id, priority, tag, updated_at)
  select p.consumer_id, p.model_id, 0, max(p.tag), now() from load.plan p where p.state = 'queued' group by 1, 2
  on conflict (consumer_id, model_id, priority) do update set tag = greatest(t.tag, excluded.tag), updated_at = excluded.updated_at;

  perform load.index(t) from unnest(v_tables) t;
end $$;

-- Writes holds, transfers, entries and balances of the plan.
create function load.write_money() returns void
language plpgsql
set session_replication_role = replica set work_mem = '1GB' set maintenance_work_mem = '512MB' set synchronous_commit = off as $$
declare
  v_tables regclass[] := array['public.ledger_transfers', 'public.ledger_entries', 'public.ledger_holds'];
begin
  perform load.stop_tick();
  perform load.unindex(t) from unnest(v_tables) t;
  create temp table transfer on commit drop as
  select p.n, infernet.derived_id(p.job_id, 'hold') as hold_id,
         case when p.state = 'completed' then infernet.derived_id(p.attempt_id, 'capture') end as capture_id
  from load.plan p;

  insert into public.ledger_holds (id, consumer_id, amount, captured, released, open_jobs, created_at, closed_at)
  select p.job_id, p.consumer_id, p.cap, p.cost, case when d.done then p.cap - p.cost else 0 end, (not d.done)::int, p.created_at,
         case when d.done then p.created_at + interval '2 seconds' end
  from load.plan p cross join lateral (select p.state = 'completed' as done) d order by p.n;

  insert into public.ledger_transfers (id, kind, job_id, attempt_id, digest, created_at)
  select t.hold_id, 'hold'::public.ledger_transfer_kind, p.job_id, null::uuid, sha256(uuid_send(p.job_id)), p.created_at
  from load.plan p join transfer t using (n)
  union all
  select t.capture_id, 'capture', p.job_id, p.attempt_id, sha256(uuid_send(p.attempt_id)), p.created_at + interval '2 seconds'
  from load.plan p join transfer t using (n) where p.state = 'completed';

  with account as materialized (
    select a.* from public.ledger_accounts a
  ), leg as materialized (
    select p.n, l.transfer, a.id as account_id, l.amount, p.created_at + l.after as created_at,
           case l.transfer when 1 then t.hold_id else t.capture_id end as transfer_id
    from load.plan p join transfer t using (n)
    cross join lateral (values
      (1, 'available', p.consumer_id, 0, -p.cap, interval '0'),
      (1, 'held', p.consumer_id, 0, p.cap, interval '0'),
      (2, 'held', p.consumer_id, 0, -p.cap, interval '2 seconds'),
      (2, 'available', p.consumer_id, 0, p.cap - p.cost, interval '2 seconds'),
      (2, 'earned', (p.offer).owner_id, 0, p.earned, interval '2 seconds'),
      (2, 'fee', null::uuid, (p.n & 7)::int, p.cost - p.earned, interval '2 seconds')
    ) as l (transfer, kind, party_id, shard, amount, after)
    join account a on a.kind = l.kind::public.ledger_account_kind and a.shard = l.shard
      and coalesce(a.party_id, '00000000-0000-0000-0000-000000000000') = coalesce(l.party_id, '00000000-0000-0000-0000-000000000000')
    where l.amount <> 0 and (l.transfer = 1 or p.state = 'completed')
  ), entry as (
    insert into public.ledger_entries (transfer_id, account_id, amount, balance_after, created_at)
    select l.transfer_id, l.account_id, l.amount,
           a.balance + sum(l.amount) over (partition by l.account_id order by l.n, l.transfer rows unbounded preceding), l.created_at
    from leg l join account a on a.id = l.account_id
  )
  update public.ledger_accounts a set balance = a.balance + t.amount
  from (select l.account_id, sum(l.amount) as amount from leg l group by 1) t where a.id = t.account_id;

  perform load.index(t) from unnest(v_tables) t;
end $$;
