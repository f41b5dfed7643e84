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

-- Ends what has waited or run past its deadline, and cancellations that no node answered.
create function infernet.sweep_deadlines(p_now timestamptz, p_limit int) returns int
language plpgsql security definer set search_path = '' as $$
declare
  v_job     public.jobs;
  v_attempt public.job_attempts;
  v_count   int := 0;
begin
  for v_job in
    select * from public.jobs j
    where (j.state in ('unpaid', 'queued', 'assigned', 'running', 'cancelling') and j.deadline_at <= p_now)
       or (j.state = 'cancelling' and j.cancel_at <= p_now - infernet.setting_secs('cancel_secs'))
    order by j.deadline_at limit p_limit for update skip locked
  loop
    continue when not infernet.accounts_free(v_job.consumer_id);
    select * into v_attempt from public.job_attempts a
    where a.job_id = v_job.id and a.state in ('offered', 'running') for update;
    if found then
      perform infernet.abandon_attempt(v_attempt, case when v_job.state = 'cancelling' then 'cancelled' else 'failed' end::public.attempt_state,
        case when v_job.state = 'cancelling' then 'cancelled' else 'deadline' end,
        case when v_job.state = 'cancelling' then 'The node did not answer the cancellation.' else 'The deadline passed.' end,
        true, false);
    else
      perform infernet.end_job(v_job.id, 'expired', 'deadline', 'The deadline passed before a node took the job.');
    end if;
    v_count := v_count + 1;
  end loop;
  return v_count;
end $$;

-- Takes back what was offered and not started in time.
create function infernet.sweep_offers(p_now timestamptz, p_limit int) returns int
language plpgsql security definer set search_path = '' as $$
declare
  v_attempt public.job_attempts;
  v_job     public.jobs;
  v_count   int := 0;
begin
  for v_attempt in
    select * from public.job_attempts a
    where a.state = 'offered' and a.offered_at <= p_now - infernet.setting_secs('offer_secs')
    order by a.offered_at limit p_limit
  loop
    select * into v_job from public.jobs j where j.id = v_attempt.job_id for update skip locked;
    continue when not found or not infernet.accounts_free(v_job.consumer_id);
    select * into v_attempt from public.job_attempts a where a.id = v_attempt.id and a.state = 'offered' for update;
    continue when not found;
    perform infernet.abandon_attempt(v_attempt, 'lost', 'not_started', 'The node did not start it in time.', true, false);
    v_count := v_count + 1;
  end loop;
  return v_count;
end $$;

-- Marks nodes whose lease has run out as offline, and takes their attempts back. The lease is read
-- again under the lock: a heartbeat that came in between wins.
create function infernet.sweep_nodes(p_now timestamptz, p_limit int) returns int
language plpgsql security definer set search_path = '' as $$
declare
  v_node    record;
  v_attempt public.job_attempts;
  v_job     public.jobs;
  v_count   int := 0;
begin
  for v_node in
    select n.node_id from public.node_liveness n join public.providers p on p.id = n.node_id
    where n.lease_until <= p_now
      and (p.status <> 'offline'
           or exists (select from public.job_attempts a where a.provider_id = p.id and a.state in ('offered', 'running')))
    limit p_limit for update of n skip locked
  loop
    update public.providers set status = 'offline' where id = v_node.node_id and status <> 'offline';
    for v_attempt in
      select * from public.job_attempts a where a.provider_id = v_node.node_id and a.state in ('offered', 'running')
      order by a.job_id limit p_limit
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

-- Gives waiting jobs to nodes that are free.
create function infernet.dispatch(p_now timestamptz, p_limit int) returns int
language plpgsql security definer set search_path = '' as $$
declare
  v_job   uuid;
  v_count int := 0;
begin
  for v_job in
    select j.id from public.jobs j
    where j.state = 'queued' and j.deadline_at > p_now
      and exists (select from public.offers o join infernet.offer_load l on l.offer_id = o.id
                  join public.node_liveness n on n.node_id = o.provider_id
                  where o.model_id = j.model_id and o.enabled and o.approved and l.busy < l.slots
                    and n.lease_until > p_now and not n.draining)
    order by j.priority desc, j.created_at limit p_limit for update skip locked
  loop
    if infernet.assign_job(v_job, false) is not null then
      v_count := v_count + 1;
    end if;
  end loop;
  return v_count;
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

create function infernet.measure(p_now timestamptz) returns void
language sql security definer set search_path = '' as $$
  update infernet.pulse set last_tick = p_now,
    live_streams = (select count(*) from public.job_attempts a where a.state in ('offered', 'running')),
    wakeups_per_second = (select count(*) from public.job_attempts a where a.state = 'offered') / 1.0
$$;

create function infernet.prune(p_now timestamptz) returns void
language sql security definer set search_path = '' as $$
  delete from infernet.login_events where used_at < p_now - interval '2 minutes 10 seconds';
  delete from infernet.rate_limits where window_start < p_now - interval '10 minutes';
  delete from infernet.enrolments where expires_at < p_now - interval '7 days';
$$;

-- One round. Returns what it did, for logs and tests; {"ran": false} when another is at it.
create function infernet.tick() returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_now   timestamptz := infernet.clock();
  v_limit int := infernet.setting_int('tick_jobs');
  v_pulse infernet.pulse;
  v_done  jsonb;
begin
  if not pg_try_advisory_xact_lock(hashtextextended('infernet.tick', 0)) then
    return '{"ran": false}'::jsonb;
  end if;
  perform infernet.install_realtime();
  select * into strict v_pulse from infernet.pulse;
  perform infernet.notice_outage(v_now, v_pulse.last_tick);
  select * into strict v_pulse from infernet.pulse;
  v_done := jsonb_build_object('ran', true, 'nodes', infernet.tick_nodes(v_now, v_limit), 'deadlines', infernet.sweep_deadlines(v_now, v_limit));
  if v_pulse.grace_until <= v_now then
    v_done := v_done || jsonb_build_object('offers', infernet.sweep_offers(v_now, v_limit),
                                           'lost', infernet.sweep_nodes(v_now, v_limit));
  end if;
  v_done := v_done || jsonb_build_object('dispatched', infernet.dispatch(v_now, v_limit));
  perform infernet.measure(v_now);
  perform infernet.prune(v_now);
  return v_done;
end $$;

-- Runs the tick inside a hot call when nobody has for three seconds: neither timer nor pg_cron is there.
create function infernet.lazy_tick() returns void
language plpgsql security definer set search_path = '' as $$
begin
  if exists (select from infernet.pulse p where p.last_tick < infernet.clock() - interval '3 seconds') then
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
