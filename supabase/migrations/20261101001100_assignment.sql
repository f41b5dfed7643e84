-- Assignment: which node gets a job, and which job a free slot gets. The whole market is these
-- functions: filter, order by one score, take a slot, write the attempt.

-- The dials of the score, from the setting of that name; what is not set weighs nothing.
create type infernet.weights as (
  price double precision, speed double precision, outcomes double precision, warm double precision,
  load double precision, realtime double precision, prefer double precision, retry double precision);

create function infernet.weights(p_settings jsonb) returns infernet.weights
language plpgsql stable set search_path = '' as $$
begin
  return jsonb_populate_record(row(0, 0, 0, 0, 0, 0, 0, 0)::infernet.weights, p_settings -> 'weights');
end $$;

-- One number that orders candidates, lower is better: what the job would cost there as a share of its
-- cap; how fast the server has seen it work, against an ordinary offer (unseen counts as ordinary); what
-- became of its recent jobs; whether it has just served this model; how full it is; whether its node
-- hears wake-ups; whether the consumer prefers it; whether it failed this job before.
create function infernet.score(
  p_weights infernet.weights, p_price_share double precision, p_speed double precision, p_reputation int, p_warm boolean,
  p_load double precision, p_realtime boolean, p_preferred boolean, p_failed_before boolean)
returns double precision
language sql immutable parallel safe as $$
  select (p_weights).price * p_price_share
       + (p_weights).speed / (1 + coalesce(p_speed, 1))
       + (p_weights).outcomes * (1 - p_reputation / 100.0::double precision)
       + (p_weights).warm * (not p_warm)::int
       + (p_weights).load * p_load
       + (p_weights).realtime * (not p_realtime)::int
       - (p_weights).prefer * p_preferred::int
       + (p_weights).retry * p_failed_before::int
$$;

-- What a choice came to: the offers that could start the job now, best first; the cap that held; the
-- lowest price of those looked at; and the record of it, for people.
create type infernet.choice as (offers uuid[], cap numeric, lowest numeric, record jsonb);

-- Looks at the offers of a job's model, at most candidates_max of them: of a model that is offered more
-- often, a part that begins at a random place. Ties are random. A job without a cap gets one: so many
-- times the lowest price. A node on which the job failed before comes last, and only after retry_after.
--
-- The record: {"seen": how many, "offers": [[node, score or the reason why not]…], the best 16}.
create function infernet.candidates(p_job public.jobs, p_settings jsonb) returns infernet.choice
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_now     timestamptz := infernet.clock();
  v_weights infernet.weights := infernet.weights(p_settings);
  v_most    int := (p_settings -> 'candidates_max')::int;
  v_from    uuid := gen_random_uuid();
  v_factor  numeric := (p_settings -> 'cap_factor')::numeric;
  v_warm    timestamptz := v_now - infernet.secs(p_settings, 'warm_secs');
  v_usual   double precision := (p_settings -> 'speed_reference')::double precision;
  v_choice  infernet.choice;
begin
  with part as materialized (
    (select o.* from public.offers o where o.model_id = p_job.model_id and o.enabled and o.approved and o.id >= v_from
     order by o.id limit v_most)
    union all
    (select o.* from public.offers o where o.model_id = p_job.model_id and o.enabled and o.approved and o.id < v_from
     order by o.id limit v_most)
  ), sampled as (
    select * from part limit v_most
  ), asked as (
    (select * from sampled)
    union all
    (select o.* from public.offers o
     where cardinality(p_job.prefer) > 0 and (select count(*) from sampled) >= v_most and o.model_id = p_job.model_id
       and o.enabled and o.approved and o.provider_id = any (p_job.prefer) and o.id not in (select s.id from sampled s))
  ), priced as materialized (
    select o.id, o.provider_id, o.vram_gb, o.labels, o.region, o.reputation,
           infernet.price(o.price_input, o.price_output, o.price_second,
                          p_job.input_bound, p_job.max_tokens, p_job.max_seconds) as cost
    from asked o
  ), cap as materialized (
    select min(p.cost) as lowest, coalesce(p_job.price_cap, round(min(p.cost) * v_factor, 12)) as cap from priced p
  -- Materialised, because a verdict and a score are asked for several times.
  ), judged as materialized (
    select o.id, o.provider_id, c.cap, c.lowest,
      case when n.lease_until <= v_now then 'offline'
           when n.draining then 'takes no new work'
           when o.cost > c.cap then 'above the cap'
           when o.provider_id = any (p_job.exclude) then 'excluded'
           when o.vram_gb < p_job.min_vram_gb then 'too little memory'
           when not o.labels @> p_job.labels then 'without the labels'
           when p_job.region <> coalesce(o.region, '') then 'in another region'
           when b.busy >= l.slots then 'busy'
           when p_job.retry_after > v_now and o.provider_id = any (p_job.failed_on) then 'failed it before' end as verdict,
      infernet.score(v_weights, case when c.cap > 0 then (o.cost / c.cap)::double precision else 0 end, l.speed / v_usual,
        o.reputation, coalesce(l.last_done > v_warm, false), b.busy::double precision / l.slots, n.realtime,
        o.provider_id = any (p_job.prefer), o.provider_id = any (p_job.failed_on)) as score
    from priced o
    cross join cap c
    join infernet.offer_load l on l.offer_id = o.id
    join public.node_liveness n on n.node_id = o.provider_id
    cross join lateral (select count(*) as busy from infernet.live_attempts a where a.offer_id = o.id) b
  )
  select array_agg(j.id) filter (where j.verdict is null), min(j.cap), min(j.lowest),
         jsonb_build_object('seen', count(*), 'offers', to_jsonb((array_agg(
           jsonb_build_array(j.provider_id, coalesce(to_jsonb(j.verdict), to_jsonb(round(j.score::numeric, 3))))))[1:16]))
  into v_choice
  from (select * from judged j order by j.verdict is not null, j.score, random()) j;
  return v_choice;
end $$;

-- Locks an offer and says how many of p_count slots it has free; from then on they are the caller's to give
-- away. Null when somebody else holds it. p_wait: waits for whoever holds the lock; only a caller that holds
-- no other row of offer_load may, because two that each hold one and want the other's would wait for ever.
create function infernet.take_slots(p_offer uuid, p_count int, p_wait boolean) returns int
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_slots int;
begin
  if p_wait then
    select l.slots into v_slots from infernet.offer_load l where l.offer_id = p_offer for update;
  else
    select l.slots into v_slots from infernet.offer_load l where l.offer_id = p_offer for update skip locked;
  end if;
  if v_slots is null then
    return null;
  end if;
  -- A statement of its own, so that it sees what was given away until the lock was had.
  return greatest(0, least(p_count, v_slots - infernet.busy(p_offer)));
end $$;

-- Takes a slot of the first of these offers that has one, and returns it. Those that somebody holds are passed
-- by, because the next best offer now is better than the best one after somebody's commit; p_wait: unless
-- nothing else is left.
create function infernet.take_first(p_offers uuid[], p_wait boolean) returns uuid
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_offer uuid;
  v_taken int;
  v_holds boolean := false;
begin
  foreach v_offer in array coalesce(p_offers, '{}') loop
    v_taken := infernet.take_slots(v_offer, 1, false);
    if v_taken = 1 then
      return v_offer;
    end if;
    -- Locked and found full in the meantime.
    v_holds := v_holds or v_taken is not null;
  end loop;
  if p_wait and not v_holds and cardinality(p_offers) > 0 and infernet.take_slots(p_offers[1], 1, true) = 1 then
    return p_offers[1];
  end if;
  return null;
end $$;

-- Why a job was not given to a node when it was submitted, for its history: it starts later, its consumer may
-- run no more, or no offer could take it. Of the record of the choice, the offers by their reasons.
create function infernet.unmet(p_record jsonb, p_start_at timestamptz, p_room int) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  return (select jsonb_build_object('seen', p_record -> 'seen', 'not', coalesce(jsonb_object_agg(o.reason, o.n) filter (where o.reason is not null), '{}'),
    'waits', case when p_start_at is not null then 'delayed' when p_room <= 0 then 'running_limit' else 'none_free' end)
  from (select e ->> 1 as reason, count(*) as n from jsonb_array_elements(coalesce(nullif(p_record -> 'offers', 'null'), '[]')) e
        where jsonb_typeof(e -> 1) = 'string' group by 1) o);
end $$;

-- Writes attempts of jobs on an offer whose slots the caller has taken: their price is copied from the
-- offer in the same statement. The arrays run side by side, those of priorities and tags are null for jobs
-- that stood in no line; the caller holds the jobs' rows and has put the attempts' ids there. Returns the
-- first of them.
create function infernet.write_attempts(
  p_attempts uuid[], p_jobs uuid[], p_consumers uuid[], p_deadlines timestamptz[], p_priorities smallint[], p_tags bigint[],
  p_offer uuid, p_settings jsonb, p_choice jsonb, p_at_submit boolean)
returns public.job_attempts
language plpgsql security definer set search_path = '' as $$
declare
  v_now     timestamptz := infernet.clock();
  v_due     timestamptz := v_now + infernet.secs(p_settings, 'offer_secs');
  v_attempt public.job_attempts;
begin
  with live as (
    insert into infernet.live_attempts (job_id, attempt_id, offer_id, provider_id, consumer_id, due_at, model_id, priority, tag)
    select j.job_id, j.id, p_offer, o.provider_id, j.consumer_id, least(v_due, j.deadline_at),
           case when j.tag is not null then o.model_id end, j.priority, j.tag
    from public.offers o cross join unnest(p_attempts, p_jobs, p_consumers, p_deadlines, p_priorities, p_tags)
      as j (id, job_id, consumer_id, deadline_at, priority, tag)
    where o.id = p_offer
  ), attempt as (
    insert into public.job_attempts (id, job_id, number, offer_id, provider_id, provider_name, owner_id, price_input, price_output,
                                     price_second, fee_rate, model_digest, at_submit, choice, offered_at)
    select j.id, j.job_id,
           case when p_at_submit then 1
                else (select coalesce(max(a.number), 0) + 1 from public.job_attempts a where a.job_id = j.job_id) end,
           o.id, o.provider_id, p.name, p.owner_id, o.price_input, o.price_output, o.price_second,
           (p_settings -> 'fee_rate')::numeric, o.model_digest, p_at_submit, p_choice, v_now
    from public.offers o join public.providers p on p.id = o.provider_id
    cross join unnest(p_attempts, p_jobs) as j (id, job_id)
    where o.id = p_offer returning *
  )
  select a.* into v_attempt from attempt a limit 1;
  return v_attempt;
end $$;

-- Takes queued jobs out of their lines and gives them to an offer, as write_attempts; returns the attempts.
create function infernet.give_jobs(p_jobs uuid[], p_offer uuid, p_settings jsonb, p_choice jsonb) returns uuid[]
language plpgsql security definer set search_path = '' as $$
declare
  v_attempts uuid[];
  v_line     record;
begin
  select array_agg(infernet.new_id()) into v_attempts from unnest(p_jobs);
  update public.jobs j set state = 'assigned', attempts = attempts + 1, attempt_id = p.attempt_id
  from unnest(p_jobs, v_attempts) as p (id, attempt_id) where j.id = p.id;
  with taken as (
    delete from infernet.queue q using unnest(p_jobs) with ordinality as p (id, n) where q.job_id = p.id
    returning q.consumer_id, q.deadline_at, q.priority, q.tag, p.n)
  select array_agg(t.consumer_id order by t.n) as consumers, array_agg(t.deadline_at order by t.n) as deadlines,
         array_agg(t.priority order by t.n) as priorities,
         array_agg(t.tag order by t.n) as tags
  into v_line from taken t;
  perform infernet.write_attempts(v_attempts, p_jobs, v_line.consumers, v_line.deadlines, v_line.priorities, v_line.tags, p_offer,
                                  p_settings, p_choice, false);
  return v_attempts;
end $$;

-- How many more jobs of a consumer may run now, of whom p_most may.
create function infernet.room_of(p_consumer uuid, p_most int) returns int
language plpgsql volatile security definer set search_path = '' as $$
begin
  return p_most - (select count(*) from (select from infernet.live_attempts a where a.consumer_id = p_consumer limit p_most) a);
end $$;

-- How many more jobs of a consumer may run now.
create function infernet.room_to_run(p_consumer uuid, p_settings jsonb) returns int
language plpgsql volatile security definer set search_path = '' as $$
begin
  return infernet.room_of(p_consumer, coalesce((select u.running_limit from public.users u where u.id = p_consumer),
                                               (p_settings -> 'running_limit')::int));
end $$;

-- Gives a queued job to the best node that is free; null when there is none. The caller has locked
-- the job's row. p_wait: wait for a slot that is just changing hands (see take_slots).
create function infernet.assign_job(p_job uuid, p_wait boolean) returns uuid
language plpgsql security definer set search_path = '' as $$
declare
  v_settings jsonb := infernet.settings_now();
  v_job      public.jobs;
  v_choice   infernet.choice;
  v_offer    uuid;
begin
  select * into strict v_job from public.jobs j where j.id = p_job;
  if v_job.state <> 'queued' or v_job.deadline_at <= infernet.clock() or v_job.start_at > infernet.clock()
     or infernet.room_to_run(v_job.consumer_id, v_settings) <= 0 then
    return null;
  end if;
  v_choice := infernet.candidates(v_job, v_settings);
  v_offer := infernet.take_first(v_choice.offers[1:8], p_wait);
  if v_offer is null then
    return null;
  end if;
  return (infernet.give_jobs(array[p_job], v_offer, v_settings, v_choice.record || '{"by": "score"}'))[1];
end $$;

-- The next jobs of the line that an offer can take, locked: of line_window waiting jobs at most, and
-- without consumers who may run no more.
create function infernet.next_ids(p_offer public.offers, p_count int, p_settings jsonb) returns uuid[]
language plpgsql security definer set search_path = '' as $$
declare
  v_now       timestamptz := infernet.clock();
  v_window    int := greatest((p_settings -> 'line_window')::int, 2 * p_count);
  v_jobs      uuid[];
  v_consumers uuid[];
  v_ids       uuid[] := '{}'::uuid[];
  v_full      uuid[];
  v_without   uuid[] := '{}'::uuid[];
begin
  if p_count <= 0 then
    return null;
  end if;
  for i in 1 .. 4 loop
    select array_agg(f.id), array_agg(f.consumer_id) into v_jobs, v_consumers
    from (
      select j.id, j.consumer_id
      from (select q.* from infernet.queue q
            where q.model_id = p_offer.model_id and q.ready_at is null
              and q.job_id <> all (v_ids) and q.consumer_id <> all (v_without)
            order by q.priority desc, q.tag, q.job_id limit v_window) q
      join public.jobs j on j.id = q.job_id
      where j.state = 'queued' and q.deadline_at > v_now
        and infernet.price(p_offer.price_input, p_offer.price_output, p_offer.price_second,
                           q.input_bound, q.max_tokens, q.max_seconds) <= q.price_cap
        and q.min_vram_gb <= p_offer.vram_gb and q.labels <@ p_offer.labels
        and (q.region is null or q.region = p_offer.region)
        and p_offer.provider_id <> all (q.exclude)
        and (q.retry_after is null or q.retry_after <= v_now or p_offer.provider_id <> all (q.failed_on))
      order by q.priority desc, q.tag, q.job_id
      limit p_count - cardinality(v_ids) for update of j skip locked) f;
    exit when v_jobs is null;
    select v_ids || coalesce(array_agg(r.id order by r.turn) filter (where r.n <= c.room), '{}'),
           v_without || coalesce(array_agg(distinct r.consumer_id) filter (where r.n > c.room), '{}')
    into v_ids, v_full
    from (select u.id, u.consumer_id, u.turn, row_number() over (partition by u.consumer_id order by u.turn) as n
          from unnest(v_jobs, v_consumers) with ordinality as u (id, consumer_id, turn)) r
    join (select d.id, infernet.room_to_run(d.id, p_settings) as room
          from (select distinct u.id from unnest(v_consumers) as u (id)) d) c on c.id = r.consumer_id;
    exit when v_full = v_without or cardinality(v_ids) = p_count;
    v_without := v_full;
  end loop;
  return nullif(v_ids, '{}');
end $$;

-- Gives the next jobs of the line to an offer, as many as it has free slots and at most p_count; returns their
-- attempts. p_wait as in take_slots; jobs that somebody else is just looking at are skipped.
create function infernet.fill_offer(p_offer uuid, p_count int, p_wait boolean, p_settings jsonb) returns uuid[]
language plpgsql security definer set search_path = '' as $$
declare
  v_now   timestamptz := infernet.clock();
  v_offer public.offers;
  v_ids   uuid[];
begin
  select o.* into v_offer from public.offers o join public.node_liveness n on n.node_id = o.provider_id
  where o.id = p_offer and o.enabled and o.approved and n.lease_until > v_now and not n.draining
    and exists (select from infernet.queue q where q.model_id = o.model_id and q.ready_at is null);
  if not found then
    return null;
  end if;
  v_ids := infernet.next_ids(v_offer, least(p_count, v_offer.slots - infernet.busy(p_offer)), p_settings);
  if v_ids is null then
    return null;
  end if;
  v_ids := v_ids[1 : coalesce(infernet.take_slots(p_offer, cardinality(v_ids), p_wait), 0)];
  if v_ids = '{}' then
    return null;
  end if;
  return infernet.give_jobs(v_ids, p_offer, p_settings, '{"by": "line"}');
end $$;

-- An attempt as its node is told of it: ids, never the input. Volatile, so that it sees an attempt
-- which the same expression has just made.
create function infernet.offered(p_attempt uuid) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
begin
  return (select jsonb_build_object('attempt', a.id, 'job', a.job_id, 'model', j.model_name, 'kind', j.kind, 'offered_at', a.offered_at)
          from public.job_attempts a join public.jobs j on j.id = a.job_id where a.id = p_attempt);
end $$;

-- ---------------------------------------------------------------- ends of attempts without a result

-- Ends a live attempt, and with it frees its slot.
create function infernet.close_attempt(p_attempt uuid, p_state public.attempt_state, p_code text, p_message text)
returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_job uuid;
begin
  update public.job_attempts set state = p_state, ended_at = infernet.clock(), error_code = p_code, error = left(p_message, 1000)
  where id = p_attempt and state in ('offered', 'running') returning job_id into v_job;
  delete from infernet.live_attempts where job_id = v_job;
end $$;

-- Ends a job without anything to pay: its part of the hold goes back. Safe to repeat. The caller holds
-- the job's row.
create function infernet.end_job(p_job uuid, p_state public.job_state, p_code text, p_message text) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_job public.jobs;
begin
  select * into strict v_job from public.jobs j where j.id = p_job;
  if v_job.state in ('completed', 'failed', 'cancelled', 'expired') then
    return;
  end if;
  if v_job.state <> 'unpaid' then
    perform infernet.release_hold(v_job);
  end if;
  update public.jobs set state = p_state, ended_at = infernet.clock(), error_code = p_code, error = left(p_message, 1000)
  where id = p_job;
  delete from infernet.queue where job_id = p_job;
  if p_state in ('failed', 'expired') then
    insert into infernet.failed_jobs (job_id, consumer_id, failed_at) values (p_job, v_job.consumer_id, infernet.clock())
    on conflict (job_id) do update set failed_at = excluded.failed_at;
  end if;
end $$;

-- Ends an attempt that brought no result, and decides about its job: cancelled if its consumer wanted
-- that, failed or expired for good, or queued again and offered elsewhere at once. Job and attempt
-- are locked by the caller. p_counts: whether it counts against max_attempts; p_final: no retry.
create function infernet.abandon_attempt(
  p_attempt public.job_attempts, p_state public.attempt_state, p_code text, p_message text,
  p_counts boolean, p_final boolean) returns public.job_state
language plpgsql security definer set search_path = '' as $$
declare
  v_settings jsonb := infernet.settings_now();
  v_now      timestamptz := infernet.clock();
  v_job      public.jobs;
begin
  select * into strict v_job from public.jobs j where j.id = p_attempt.job_id;
  perform infernet.close_attempt(p_attempt.id, p_state, p_code, p_message);
  perform infernet.note_outcome(p_attempt, v_job.consumer_id, p_code, null, null);
  if v_job.state = 'cancelling' then
    perform infernet.end_job(v_job.id, 'cancelled', 'cancelled', 'Cancelled; the node delivered nothing that counts.');
  elsif v_job.deadline_at <= v_now then
    perform infernet.end_job(v_job.id, 'expired', 'deadline', 'The deadline passed.');
  elsif p_final or (p_counts and v_job.attempts >= v_job.max_attempts) then
    perform infernet.end_job(v_job.id, 'failed', p_code, p_message);
  else
    update public.jobs set state = 'queued',
      attempts = attempts - case when p_counts then 0 else 1 end,
      failed_on = case when p_attempt.provider_id = any (failed_on) then failed_on else failed_on || p_attempt.provider_id end,
      retry_after = v_now + least(infernet.secs(v_settings, 'retry_secs') * (2 ^ greatest(v_job.attempts - 1, 0))::double precision,
                                  infernet.secs(v_settings, 'retry_secs_max'))
    where id = v_job.id;
    perform infernet.enqueue(array[v_job.id], true);
    perform infernet.assign_job(v_job.id, false);
    return (select j.state from public.jobs j where j.id = v_job.id);
  end if;
  return (select j.state from public.jobs j where j.id = v_job.id);
end $$;
