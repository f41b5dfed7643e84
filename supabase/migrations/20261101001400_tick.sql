-- The tick: everything that time alone causes. The embedded timer or pg_cron calls it each second, and
-- hot calls do when nobody else has; a try-lock lets one run at a time. It skips rows that others hold,
-- and comes back to them at the next tick.

-- Whether the money of a job's consumer can be moved without waiting for anybody.
create function infernet.accounts_free(p_consumer uuid) returns boolean
language sql volatile security definer set search_path = '' as $$
  select count(*) = 2 from (
    select from public.ledger_accounts a where a.party_id = p_consumer and a.kind in ('available', 'held')
    order by a.id for update skip locked) a
$$;

-- Ends what has waited past its deadline.
create function infernet.sweep_queue(p_now timestamptz, p_limit int) returns int
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_bitmapscan = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
declare
  v_row   record;
  v_count int := 0;
begin
  for v_row in
    select j.id, j.consumer_id from infernet.queue q join public.jobs j on j.id = q.job_id
    where q.deadline_at <= p_now order by q.deadline_at limit p_limit for update of j skip locked
  loop
    continue when not infernet.accounts_free(v_row.consumer_id);
    perform infernet.end_job(v_row.id, 'expired', 'deadline', 'The deadline passed before a node took the job.');
    v_count := v_count + 1;
  end loop;
  return v_count;
end $$;

-- Ends what has run past its deadline and cancellations that no node answered, and takes back what was offered
-- and not started in time, unless offers are spared until p_spared. Puts off what is due later.
create function infernet.sweep_attempts(p_now timestamptz, p_spared timestamptz, p_limit int) returns int
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_bitmapscan = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
declare
  v_settings jsonb := infernet.settings_now();
  v_id       uuid;
  v_job      public.jobs;
  v_attempt  public.job_attempts;
  v_count    int := 0;
begin
  for v_id in select l.job_id from infernet.live_attempts l where l.due_at <= p_now order by l.due_at limit p_limit loop
    select * into v_job from public.jobs j where j.id = v_id for update skip locked;
    continue when not found or not infernet.accounts_free(v_job.consumer_id);
    select a.* into v_attempt from infernet.live_attempts l join public.job_attempts a on a.id = l.attempt_id
    where l.job_id = v_id for update of a;
    continue when not found;
    if v_job.state = 'cancelling' and v_job.cancel_at <= p_now - infernet.secs(v_settings, 'cancel_secs') then
      perform infernet.abandon_attempt(v_attempt, 'cancelled', 'cancelled', 'The node did not answer the cancellation.', true, false);
    elsif v_job.deadline_at <= p_now then
      perform infernet.abandon_attempt(v_attempt, case when v_job.state = 'cancelling' then 'cancelled' else 'failed' end::public.attempt_state,
                                       'deadline', 'The deadline passed.', true, false);
    elsif v_attempt.state = 'offered' and v_attempt.offered_at <= p_now - infernet.secs(v_settings, 'offer_secs') and p_spared <= p_now then
      perform infernet.abandon_attempt(v_attempt, 'lost', 'not_started', 'The node did not start it in time.', true, false);
    else
      update infernet.live_attempts set due_at = least(v_job.deadline_at,
        case when v_attempt.state = 'offered' then greatest(p_spared, v_attempt.offered_at + infernet.secs(v_settings, 'offer_secs')) end,
        v_job.cancel_at + infernet.secs(v_settings, 'cancel_secs'))
      where job_id = v_id;
      continue;
    end if;
    v_count := v_count + 1;
  end loop;
  return v_count;
end $$;

-- Nodes whose lease has run out, and that are not known as offline or still have attempts. It reads all nodes
-- at each tick, which is cheapest by reading the whole table.
create function infernet.silent_nodes(p_now timestamptz, p_limit int) returns setof uuid
language plpgsql stable security definer set search_path = ''
set enable_seqscan = on set enable_hashjoin = on as $$
begin
  return query
    (select n.node_id from public.providers p join public.node_liveness n on n.node_id = p.id
     where p.status <> 'offline' and n.lease_until <= p_now limit p_limit)
    union
    (select n.node_id from infernet.live_attempts l join public.node_liveness n on n.node_id = l.provider_id
     where n.lease_until <= p_now limit p_limit);
end $$;

-- Marks nodes whose lease has run out as offline, and takes their attempts back. The lease is read
-- again under the lock: a heartbeat that came in between wins.
create function infernet.sweep_nodes(p_now timestamptz, p_limit int) returns int
language plpgsql security definer set search_path = ''
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
declare
  v_node    uuid;
  v_attempt public.job_attempts;
  v_job     public.jobs;
  v_count   int := 0;
begin
  for v_node in select n from infernet.silent_nodes(p_now, p_limit) n
  loop
    perform from public.node_liveness n where n.node_id = v_node and n.lease_until <= p_now for update skip locked;
    continue when not found;
    update public.providers set status = 'offline' where id = v_node and status <> 'offline';
    for v_attempt in
      select a.* from infernet.live_attempts l join public.job_attempts a on a.id = l.attempt_id
      where l.provider_id = v_node order by a.job_id limit p_limit
    loop
      select * into v_job from public.jobs j where j.id = v_attempt.job_id for update skip locked;
      continue when not found or not infernet.accounts_free(v_job.consumer_id);
      select * into v_attempt from public.job_attempts a
      where a.id = v_attempt.id and a.state in ('offered', 'running') for update;
      continue when not found;
      perform infernet.abandon_attempt(v_attempt, 'lost', 'node_lost', 'The node stopped answering.', true, false);
      v_count := v_count + 1;
    end loop;
  end loop;
  return v_count;
end $$;

-- Gives waiting jobs to nodes that are free: the lines of so many models a tick, in turn. Where there are
-- more free slots than jobs, each job gets its best node; otherwise each slot the next jobs of the line.
create function infernet.dispatch(p_after uuid, p_models int, p_limit int) returns table (dispatched int, reached uuid)
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_bitmapscan = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
declare
  v_settings jsonb := infernet.settings_now();
  v_now      timestamptz := infernet.clock();
  v_offers   uuid[];
  v_free     int[];
  v_jobs     uuid[];
  v_job      uuid;
begin
  dispatched := 0;
  reached := p_after;
  for i in 1 .. p_models loop
    reached := (select q.model_id from infernet.queue q where q.ready_at is null and q.model_id > reached order by q.model_id limit 1);
    exit when reached is null or dispatched >= p_limit;
    select array_agg(o.id order by random()), array_agg(o.slots - b.busy) into v_offers, v_free
    from public.offers o join public.node_liveness n on n.node_id = o.provider_id
    cross join lateral (select count(*)::int as busy from infernet.live_attempts a where a.offer_id = o.id) b
    where o.model_id = reached and o.enabled and o.approved and n.lease_until > v_now and not n.draining and b.busy < o.slots;
    continue when v_offers is null;
    select array_agg(f.job_id) into v_jobs from (
      select q.job_id from infernet.queue q where q.model_id = reached and q.ready_at is null
      order by q.priority desc, q.tag, q.job_id limit least(p_limit, (select sum(f) from unnest(v_free) f))) f;
    if cardinality(v_jobs) < (select sum(f) from unnest(v_free) f) then
      foreach v_job in array v_jobs loop
        perform from public.jobs j where j.id = v_job for update skip locked;
        if found and infernet.assign_job(v_job, false) is not null then
          dispatched := dispatched + 1;
        end if;
      end loop;
    else
      for n in 1 .. cardinality(v_offers) loop
        dispatched := dispatched + coalesce(cardinality(infernet.fill_offer(v_offers[n], p_limit, false, v_settings)), 0);
      end loop;
    end if;
  end loop;
  reached := coalesce(reached, '00000000-0000-0000-0000-000000000000');
  return next;
end $$;

-- Sees an outage of our own: the tick did not run for a while, or the database has just started, or more
-- than half of at least three live nodes fell silent together. Then leases are spared once, for one
-- lease's time. With fewer nodes, silence is theirs.
create function infernet.notice_outage(p_now timestamptz, p_last timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_lease  interval := infernet.setting_secs('lease_secs');
  v_live   int;
  v_silent int;
begin
  if p_last <> 'epoch' and p_now - p_last > infernet.setting_secs('outage_secs') then
    update infernet.pulse set grace_until = greatest(grace_until, p_now + v_lease);
    return;
  end if;
  select count(*), count(*) filter (where n.lease_until <= p_now) into v_live, v_silent
  from public.node_liveness n join public.providers p on p.id = n.node_id
  where p.status <> 'offline' and n.lease_until > p_now - v_lease;
  if v_live >= 3 and v_silent * 2 > v_live then
    update infernet.pulse set grace_until = p_now + v_lease where grace_until < p_now - v_lease;
  end if;
end $$;

create function infernet.measure(p_now timestamptz, p_reached uuid, p_settings jsonb) returns void
language plpgsql security definer set search_path = '' as $$
declare
  -- An offer is due offer_secs after it was made.
  v_due timestamptz := p_now + infernet.secs(p_settings, 'offer_secs');
begin
  update infernet.pulse set last_tick = p_now, dispatched_to = p_reached, live_streams = l.live, wakeups_per_second = l.woken
  from (select count(*)::int as live,
               count(*) filter (where a.due_at > v_due - interval '1 second' and a.due_at <= v_due) as woken
        from infernet.live_attempts a) l;
end $$;

create function infernet.prune(p_now timestamptz) returns void
language sql security definer set search_path = '' as $$
  delete from infernet.login_events where used_at < p_now - interval '2 minutes 10 seconds';
  delete from infernet.rate_limits where window_start < p_now - interval '10 minutes';
  delete from infernet.turns where updated_at < p_now - interval '1 day';
  delete from infernet.enrolments where expires_at < p_now - interval '7 days';
$$;

-- One round. Returns what it did, for logs and tests; {"ran": false} when another is at it.
create function infernet.tick() returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_now      timestamptz := infernet.clock();
  v_settings jsonb := infernet.settings_now();
  v_limit    int := (v_settings -> 'tick_jobs')::int;
  v_pulse    infernet.pulse;
  v_facts    infernet.outcomes[];
  v_dispatch record;
  v_done     jsonb;
begin
  if not pg_try_advisory_xact_lock(hashtextextended('infernet.tick', 0)) then
    return '{"ran": false}'::jsonb;
  end if;
  perform infernet.install_realtime();
  perform infernet.keep_overview(v_now, v_settings);
  select * into strict v_pulse from infernet.pulse;
  perform infernet.notice_outage(v_now, v_pulse.last_tick);
  select * into strict v_pulse from infernet.pulse;
  -- First, while no lock is held that a call waits for.
  v_done := infernet.try_retain(v_now, v_settings);
  v_facts := infernet.fold_outcomes(v_now, 10 * v_limit);
  v_done := jsonb_build_object('ran', true, 'retention', v_done, 'folded', coalesce(cardinality(v_facts), 0), 'nodes', infernet.tick_nodes(v_now, v_limit),
    'expired', infernet.sweep_queue(v_now, v_limit), 'ended', infernet.sweep_attempts(v_now, v_pulse.grace_until, v_limit),
    'lost', case when v_pulse.grace_until <= v_now then infernet.sweep_nodes(v_now, v_limit) else 0 end,
    'joined', infernet.join_lines(v_now, v_limit));
  select * into v_dispatch from infernet.dispatch(v_pulse.dispatched_to, (v_settings -> 'tick_models')::int, v_limit);
  perform infernet.measure(v_now, v_dispatch.reached, v_settings);
  v_done := v_done || jsonb_build_object('dispatched', v_dispatch.dispatched);
  perform infernet.prune(v_now);
  perform infernet.note_speeds(v_now, v_facts);
  return v_done;
end $$;

-- Runs the tick inside a hot call when nobody has for three seconds: neither timer nor pg_cron is there.
-- p_last: when the tick last ran, as the caller has read it.
create function infernet.lazy_tick(p_last timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
begin
  if p_last < infernet.clock() - interval '3 seconds' then
    perform infernet.tick();
  end if;
end $$;

-- pg_cron, where it can be had and takes seconds (from 1.5); the embedded timer and lazy ticks otherwise.
do $$
begin
  if exists (select from pg_catalog.pg_extension e where e.extname = 'pg_cron') then
    -- Debian calls its version 1.4-1.
    if string_to_array(substring((select e.extversion from pg_catalog.pg_extension e where e.extname = 'pg_cron')
                                 from '^[0-9]+(?:[.][0-9]+)*'), '.')::int[] >= array[1, 5] then
      perform cron.schedule('infernet-tick', '1 second', 'select infernet.tick()');
    else
      perform cron.schedule('infernet-tick', '* * * * *', 'select infernet.tick()');
    end if;
  end if;
end $$;
