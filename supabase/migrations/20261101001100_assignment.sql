-- Assignment: which node gets a job, and which job a free slot gets. The whole market is these
-- functions: filter, order by one score, take a slot, write the attempt.

-- One number that orders candidates, lower is better: what the job would cost there as a share of
-- its cap, how full the offer is, whether its node hears wake-ups, whether it failed this job before.
create function infernet.score(
  p_weights jsonb, p_cost numeric, p_cap numeric, p_busy int, p_slots int, p_realtime boolean, p_failed_before boolean)
returns numeric
language sql immutable parallel safe as $$
  select (p_weights ->> 'price')::numeric * case when p_cap > 0 then p_cost / p_cap else 0 end
       + (p_weights ->> 'load')::numeric * p_busy / p_slots
       + (p_weights ->> 'realtime')::numeric * (not p_realtime)::int
       + (p_weights ->> 'retry')::numeric * p_failed_before::int
$$;

-- The best offers for a job that could start it now, best first; ties are random. A node on which
-- the job failed before comes last, and only after the job's retry_after.
create function infernet.candidates(p_job public.jobs, p_limit int) returns setof uuid
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_now     timestamptz := infernet.clock();
  v_weights jsonb := infernet.setting('weights');
begin
  return query
    select o.id
    from public.offers o
    join infernet.offer_load l on l.offer_id = o.id
    join public.node_liveness n on n.node_id = o.provider_id
    where o.model_id = p_job.model_id and o.enabled and o.approved
      and l.busy < l.slots and n.lease_until > v_now and not n.draining
      and infernet.price(o.price_input, o.price_output, p_job.input_bound, p_job.max_tokens) <= p_job.price_cap
      and (p_job.retry_after is null or p_job.retry_after <= v_now or o.provider_id <> all (p_job.failed_on))
    order by infernet.score(v_weights,
               infernet.price(o.price_input, o.price_output, p_job.input_bound, p_job.max_tokens), p_job.price_cap,
               l.busy, l.slots, n.realtime, o.provider_id = any (p_job.failed_on)), random()
    limit p_limit;
end $$;

-- Writes the attempt of a job on an offer whose slot the caller has just taken; the price is copied
-- from the offer in the same statement. The job's row is locked by the caller.
create function infernet.make_attempt(p_job public.jobs, p_offer uuid, p_at_submit boolean) returns uuid
language plpgsql security definer set search_path = '' as $$
declare
  v_attempt uuid;
begin
  update public.jobs set state = 'assigned', attempts = attempts + 1 where id = p_job.id;
  insert into public.job_attempts (job_id, number, offer_id, provider_id, provider_name, price_input, price_output,
                                   fee_rate, model_digest, at_submit, offered_at)
  select p_job.id, (select coalesce(max(a.number), 0) + 1 from public.job_attempts a where a.job_id = p_job.id),
         o.id, o.provider_id, p.name, o.price_input, o.price_output,
         infernet.setting_number('fee_rate'), o.model_digest, p_at_submit, infernet.clock()
  from public.offers o join public.providers p on p.id = o.provider_id
  where o.id = p_offer
  returning id into strict v_attempt;
  return v_attempt;
end $$;

-- Gives a queued job to the best node that is free; null when there is none. The caller has locked
-- the job's row. p_wait: wait for a slot that is just changing hands (see take_slot).
create function infernet.assign_job(p_job uuid, p_wait boolean, p_at_submit boolean default false) returns uuid
language plpgsql security definer set search_path = '' as $$
declare
  v_job   public.jobs;
  v_offer uuid;
begin
  select * into strict v_job from public.jobs j where j.id = p_job;
  if v_job.state <> 'queued' or v_job.deadline_at <= infernet.clock() then
    return null;
  end if;
  for v_offer in select * from infernet.candidates(v_job, 8) loop
    if infernet.take_slot(v_offer, p_wait) then
      return infernet.make_attempt(v_job, v_offer, p_at_submit);
    end if;
  end loop;
  return null;
end $$;

-- Gives the next queued job to an offer whose slot has become free; null when none fits. p_wait as
-- in take_slot; jobs that somebody else is just looking at are skipped.
create function infernet.fill_slot(p_offer uuid, p_wait boolean) returns uuid
language plpgsql security definer set search_path = '' as $$
declare
  v_now   timestamptz := infernet.clock();
  v_offer record;
  v_job   public.jobs;
begin
  select o.id, o.model_id, o.provider_id, o.price_input, o.price_output into v_offer
  from public.offers o
  join public.node_liveness n on n.node_id = o.provider_id
  join infernet.offer_load l on l.offer_id = o.id
  where o.id = p_offer and o.enabled and o.approved and n.lease_until > v_now and not n.draining and l.busy < l.slots;
  if not found then
    return null;
  end if;
  select j.* into v_job from public.jobs j
  where j.state = 'queued' and j.model_id = v_offer.model_id and j.deadline_at > v_now
    and infernet.price(v_offer.price_input, v_offer.price_output, j.input_bound, j.max_tokens) <= j.price_cap
    and (j.retry_after is null or j.retry_after <= v_now or v_offer.provider_id <> all (j.failed_on))
  order by j.priority desc, j.created_at
  limit 1 for update skip locked;
  if not found or not infernet.take_slot(p_offer, p_wait) then
    return null;
  end if;
  return infernet.make_attempt(v_job, p_offer, false);
end $$;

-- An attempt as its node is told of it: ids, never the input. Volatile, so that it sees an attempt
-- which the same expression has just made.
create function infernet.offered(p_attempt uuid) returns jsonb
language sql volatile security definer set search_path = '' as $$
  select jsonb_build_object('attempt', a.id, 'job', a.job_id, 'model', j.model_name, 'kind', j.kind, 'offered_at', a.offered_at)
  from public.job_attempts a join public.jobs j on j.id = a.job_id where a.id = p_attempt
$$;

-- ---------------------------------------------------------------- ends of attempts without a result

-- Ends a live attempt. The slot is given back by the caller, after all accounts were touched: that is
-- the order of locks.
create function infernet.close_attempt(p_attempt uuid, p_state public.attempt_state, p_code text, p_message text)
returns void
language sql security definer set search_path = '' as $$
  update public.job_attempts set state = p_state, ended_at = infernet.clock(), error_code = p_code, error = left(p_message, 1000)
  where id = p_attempt and state in ('offered', 'running')
$$;

-- Ends a job without anything to pay: its hold goes back. Safe to repeat.
create function infernet.end_job(p_job uuid, p_state public.job_state, p_code text, p_message text) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.jobs set state = p_state, ended_at = infernet.clock(), error_code = p_code, error = left(p_message, 1000)
  where id = p_job and state not in ('completed', 'failed', 'cancelled', 'expired');
  if found then
    perform infernet.release_hold(p_job);
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
  v_now timestamptz := infernet.clock();
  v_job public.jobs;
begin
  select * into strict v_job from public.jobs j where j.id = p_attempt.job_id;
  perform infernet.close_attempt(p_attempt.id, p_state, p_code, p_message);
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
      retry_after = v_now + infernet.setting_secs('retry_secs') * (2 ^ (v_job.attempts - 1))::double precision
    where id = v_job.id;
    perform infernet.release_slot(p_attempt.offer_id);
    perform infernet.assign_job(v_job.id, false);
    return (select j.state from public.jobs j where j.id = v_job.id);
  end if;
  perform infernet.release_slot(p_attempt.offer_id);
  return (select j.state from public.jobs j where j.id = v_job.id);
end $$;
