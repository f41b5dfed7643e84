-- What a node calls for one attempt: start, complete, fail.

-- Locks the job of an attempt of the calling node, then the attempt: the order that holds everywhere.
create function infernet.lock_attempt(p_attempt uuid, p_node uuid) returns public.job_attempts
language plpgsql security definer set search_path = '' as $$
declare
  v_attempt public.job_attempts;
begin
  perform from public.jobs j where j.id = (select a.job_id from public.job_attempts a where a.id = p_attempt) for update;
  select * into v_attempt from public.job_attempts a where a.id = p_attempt for update;
  if v_attempt.provider_id is distinct from p_node then
    perform infernet.refuse(404, 'unknown_attempt', format('Attempt %s is not one of this node.', p_attempt));
  end if;
  return v_attempt;
end $$;

-- Locks the jobs of a node's attempts, in the order in which every call takes several.
create function infernet.lock_jobs(p_node uuid, p_attempts uuid[]) returns void
language sql volatile security definer set search_path = '' as $$
  select from public.jobs j
  where j.id in (select a.job_id from public.job_attempts a where a.id = any (p_attempts) and a.provider_id = p_node)
  order by j.id for update $$;

-- Refuses an attempt that is not one of the calling node's; a caller that is no node, or suspended, is told that.
create function infernet.refuse_attempt(p_attempt uuid) returns void
language plpgsql stable security definer set search_path = '' as $$
begin
  perform infernet.require_provider();
  perform infernet.refuse(404, 'unknown_attempt', format('Attempt %s is not one of this node.', p_attempt));
end $$;

-- What a node must know to run an attempt.
create function infernet.start_json(
  p_attempt public.job_attempts, p_job public.jobs, p_contents public.job_contents, p_lease uuid, p_settings jsonb,
  p_stream_rate numeric) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
begin
  return jsonb_build_object(
    'attempt', p_attempt.id, 'job', p_job.id, 'lease', p_lease, 'topic', 'job:' || p_job.consumer_id || ':' || p_job.id,
    'kind', p_job.kind, 'model', p_job.model_name, 'model_digest', p_attempt.model_digest,
    'input', p_contents.input, 'input_sha256', p_contents.input_sha256,
    'max_tokens', p_job.max_tokens, 'max_seconds', p_job.max_seconds, 'output_bytes', (p_settings -> 'output_bytes')::int,
    'deadline_secs', round(extract(epoch from p_job.deadline_at - infernet.clock()), 3),
    'price_input', infernet.usd(p_attempt.price_input), 'price_output', infernet.usd(p_attempt.price_output),
    'price_second', infernet.usd(p_attempt.price_second), 'stream_rate', p_stream_rate);
end $$;

-- Starts an attempt under a lease that the agent made, also when it had been started under the same one. Otherwise says
-- why not: not_yours (it runs under another lease, so that two agents with one key cannot both run it), or gone.
create function infernet.start_one(p_attempt uuid, p_lease uuid, out started jsonb, out refused text, out state public.attempt_state)
language plpgsql security definer set search_path = '' as $$
declare
  v_now  timestamptz := infernet.clock();
  v_held record;
begin
  -- Locks the job, then the attempt: the order that holds everywhere.
  select j as job, a as attempt, c as contents, p.approval, s.value as settings, infernet.stream_share(s.value, u) as stream_rate
  into v_held
  from public.job_attempts a
  join public.jobs j on j.id = a.job_id
  join public.job_contents c on c.job_id = a.job_id
  join public.providers p on p.id = a.provider_id
  cross join infernet.settings_row s cross join infernet.pulse u
  where a.id = p_attempt and a.provider_id = auth.uid() for update of j, a;
  if not found or v_held.approval in ('suspended', 'revoked') then
    perform infernet.refuse_attempt(p_attempt);
  end if;
  state := (v_held.attempt).state;
  if state = 'offered' then
    with started as (
      update public.job_attempts set state = 'running', lease = p_lease, started_at = v_now where id = p_attempt)
    update public.jobs set state = 'running', started_at = coalesce(started_at, v_now) where id = (v_held.job).id;
  elsif state <> 'running' then
    refused := 'gone';
    return;
  elsif (v_held.attempt).lease <> p_lease then
    refused := 'not_yours';
    return;
  end if;
  started := infernet.start_json(v_held.attempt, v_held.job, v_held.contents, p_lease, v_held.settings, v_held.stream_rate);
end $$;

create function infernet.start_attempt(p_attempt uuid, p_lease uuid) returns jsonb
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_bitmapscan = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
declare
  v record;
begin
  if p_lease is null then
    perform infernet.refuse(422, 'bad_input', 'A lease is needed.', 'Make a random UUID for it.');
  end if;
  v := infernet.start_one(p_attempt, p_lease);
  if v.refused = 'gone' then
    perform infernet.refuse(409, 'gone', format('This attempt is %s.', v.state), 'Drop it.');
  elsif v.refused = 'not_yours' then
    perform infernet.refuse(409, 'not_yours', 'This attempt runs under another lease.', 'Another agent uses this node''s key.');
  end if;
  return v.started;
end $$;

-- Starts several attempts at once; each answer is what start_attempt says, or {"attempt","refused"}. What is not of
-- this node is left out.
create function infernet.start_attempts(p_attempts uuid[], p_leases uuid[]) returns jsonb
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_bitmapscan = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
declare
  v_node    public.providers := infernet.require_provider();
  v_answers jsonb := '[]'::jsonb;
  v         record;
begin
  if p_attempts is null or cardinality(p_attempts) > 1000 or cardinality(p_attempts) is distinct from cardinality(p_leases)
     or array_position(p_leases, null) is not null then
    perform infernet.refuse(422, 'bad_input', 'At most 1000 attempts are started at once, each with a lease.');
  end if;
  perform infernet.lock_jobs(v_node.id, p_attempts);
  for v in
    select p.id, s.started, s.refused
    from unnest(p_attempts, p_leases) with ordinality as p (id, lease, n)
    join public.job_attempts a on a.id = p.id and a.provider_id = v_node.id
    cross join lateral infernet.start_one(p.id, p.lease) s
    order by p.n
  loop
    v_answers := v_answers || coalesce(v.started, jsonb_build_object('attempt', v.id, 'refused', v.refused));
  end loop;
  return jsonb_build_object('started', v_answers);
end $$;

-- Refuses a receipt whose content is not what SQL knows. Its signature is checked by whoever needs to
-- rely on it, with `infernet verify`.
create function infernet.check_receipt(
  p_receipt jsonb, p_attempt public.job_attempts, p_job public.jobs, p_public_key text, p_input_sha256 text,
  p_output_sha256 text, p_finish text, p_usage jsonb) returns void
language plpgsql stable set search_path = '' as $$
declare
  v_said     jsonb;
  v_expected jsonb := jsonb_build_object(
    'job', p_job.id, 'attempt', p_attempt.id, 'node', p_public_key, 'model', p_job.model_name,
    'input_sha256', p_input_sha256, 'output_sha256', p_output_sha256, 'finish', p_finish,
    'price_input', infernet.usd(p_attempt.price_input), 'price_output', infernet.usd(p_attempt.price_output))
    || case when p_job.kind = 'container' then jsonb_build_object(
         'seconds', p_usage -> 'seconds', 'price_second', infernet.usd(p_attempt.price_second))
       else jsonb_build_object('input_tokens', p_usage -> 'input_tokens', 'output_tokens', p_usage -> 'output_tokens') end;
  v_wrong    text;
begin
  if octet_length(p_receipt::text) > 16384 then
    perform infernet.refuse(422, 'bad_receipt', 'The receipt is larger than 16 KB.');
  end if;
  begin
    v_said := (p_receipt ->> 'content')::jsonb;
  exception when invalid_text_representation then
    v_said := null;
  end;
  if jsonb_typeof(v_said) is distinct from 'object' or p_receipt -> 'kind' is distinct from '27237'::jsonb
     or p_receipt ->> 'pubkey' is distinct from p_public_key then
    perform infernet.refuse(422, 'bad_receipt', 'The receipt is no signed event of this node.');
  end if;
  if not v_said @> v_expected then
    select min(e.key) into v_wrong from jsonb_each(v_expected) e where v_said -> e.key is distinct from e.value;
    perform infernet.refuse(422, 'bad_receipt', format('The receipt says another %s.', v_wrong));
  end if;
end $$;

-- What is paid for: no more than was stored, was allowed, or could have been made in the time.
create function infernet.bounded_usage(
  p_usage jsonb, p_job public.jobs, p_attempt public.job_attempts, p_output text, p_settings jsonb) returns jsonb
language plpgsql stable set search_path = '' as $$
declare
  v_seconds numeric := greatest(0, extract(epoch from infernet.clock() - p_attempt.started_at));
begin
  if p_job.kind = 'container' then
    return jsonb_build_object('seconds', least((p_usage ->> 'seconds')::numeric, p_job.max_seconds, ceil(v_seconds))::int);
  end if;
  return jsonb_build_object(
    'input_tokens', least((p_usage ->> 'input_tokens')::numeric, p_job.input_bound)::int,
    'output_tokens', least((p_usage ->> 'output_tokens')::numeric, p_job.max_tokens, octet_length(p_output),
                           ceil(v_seconds * (p_settings -> 'tokens_per_second_max')::numeric))::int);
end $$;

-- Refuses a result that is not one: what a call says wrongly about a running attempt.
create function infernet.check_result(
  p_job public.jobs, p_output text, p_finish text, p_usage jsonb, p_settings jsonb) returns void
language plpgsql stable set search_path = '' as $$
declare
  v_unit text;
begin
  if p_output is null or p_finish is null or p_finish not in ('stop', 'length', 'cancelled') then
    perform infernet.refuse(422, 'bad_input', 'A completion needs an output, and finish stop, length or cancelled.');
  elsif octet_length(p_output) > (p_settings -> 'output_bytes')::int then
    perform infernet.refuse(413, 'output_too_large',
      format('The output has %s bytes; at most %s are taken.', octet_length(p_output), p_settings ->> 'output_bytes'));
  elsif p_finish = 'cancelled' and p_job.state <> 'cancelling' then
    perform infernet.refuse(409, 'not_cancelled', 'Nobody cancelled this job.', 'Report a failure with fail_attempt.');
  end if;
  foreach v_unit in array case p_job.kind when 'container' then array['seconds'] else array['input_tokens', 'output_tokens'] end loop
    if jsonb_typeof(p_usage -> v_unit) is distinct from 'number' or (p_usage ->> v_unit)::numeric < 0 then
      perform infernet.refuse(422, 'bad_input', case p_job.kind when 'container'
        then 'The usage needs seconds, a number of at least 0.'
        else 'The usage needs input_tokens and output_tokens, numbers of at least 0.' end);
    end if;
  end loop;
end $$;

-- Refuses a result that is wrong, and returns what of its usage is paid for.
create function infernet.judge_result(
  p_public_key text, p_attempt public.job_attempts, p_job public.jobs, p_input_sha256 text, p_output text, p_sha256 text,
  p_finish text, p_usage jsonb, p_receipt jsonb, p_settings jsonb) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
begin
  perform infernet.check_result(p_job, p_output, p_finish, p_usage, p_settings);
  perform infernet.check_receipt(p_receipt, p_attempt, p_job, p_public_key, p_input_sha256, p_sha256, p_finish, p_usage);
  return infernet.bounded_usage(p_usage, p_job, p_attempt, p_output, p_settings);
end $$;

-- What a usage costs at an attempt's prices.
create function infernet.usage_cost(p_attempt public.job_attempts, p_usage jsonb) returns numeric
language sql immutable parallel safe
return infernet.price(p_attempt.price_input, p_attempt.price_output, p_attempt.price_second,
  coalesce((p_usage -> 'input_tokens')::bigint, 0), coalesce((p_usage -> 'output_tokens')::bigint, 0),
  coalesce((p_usage -> 'seconds')::bigint, 0));

-- Takes an attempt's result and settles it. A result that comes late, or under another lease, is kept as
-- evidence and changes nothing; a repeated one answers again. Returns the answer without what comes next, and
-- the offer whose slot is free now, if one is.
create function infernet.complete_one(
  p_attempt uuid, p_lease uuid, p_output text, p_finish text, p_usage jsonb, p_receipt jsonb,
  out answer jsonb, out offer_id uuid, out settings jsonb)
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  v_now     timestamptz := infernet.clock();
  v_sha256  text := encode(sha256(convert_to(coalesce(p_output, ''), 'UTF8')), 'hex');
  v_held    record;
  v_attempt public.job_attempts;
  v_job     public.jobs;
  v_usage   jsonb;
  v_cost    numeric(38,12);
  v_earned  numeric(38,12);
begin
  -- Locks the job, then the attempt: the order that holds everywhere.
  select j as job, a as attempt, c.input_sha256, p.public_key, p.approval, s.value as settings into v_held
  from public.job_attempts a
  join public.jobs j on j.id = a.job_id
  join public.job_contents c on c.job_id = a.job_id
  join public.providers p on p.id = a.provider_id
  cross join infernet.settings_row s
  where a.id = p_attempt and a.provider_id = auth.uid() for update of j, a;
  if not found or v_held.approval in ('suspended', 'revoked') then
    perform infernet.refuse_attempt(p_attempt);
  end if;
  v_job := v_held.job;
  v_attempt := v_held.attempt;
  if v_attempt.state <> 'running' or v_attempt.lease is distinct from p_lease then
    answer := infernet.late_result(v_attempt, v_job, p_lease, v_sha256, p_usage, p_receipt);
    return;
  end if;
  v_usage := infernet.judge_result(v_held.public_key, v_attempt, v_job, v_held.input_sha256, p_output, v_sha256, p_finish,
                                   p_usage, p_receipt, v_held.settings);
  v_cost := infernet.usage_cost(v_attempt, v_usage);
  v_earned := infernet.capture(v_attempt, v_job, v_cost);
  with attempt as (
    update public.job_attempts set state = 'completed', ended_at = v_now, cost = v_cost, earned = v_earned,
      reported = p_usage, receipt = p_receipt
    where id = p_attempt
  ), contents as (
    update public.job_contents set output = p_output, output_sha256 = v_sha256 where job_id = v_job.id
  ), live as (
    delete from infernet.live_attempts where job_id = v_job.id
  ), outcome as (
    insert into infernet.outcomes (provider_id, owner_id, offer_id, consumer_id, cost, output_tokens, seconds, noted_at)
    values (v_attempt.provider_id, v_attempt.owner_id, v_attempt.offer_id, v_job.consumer_id, v_cost,
            (v_usage -> 'output_tokens')::int, extract(epoch from v_now - v_attempt.started_at), v_now)
  )
  update public.jobs set state = case when state = 'cancelling' then 'cancelled' else 'completed' end::public.job_state,
    ended_at = v_now, provider_id = v_attempt.provider_id, cost = v_cost, finish = p_finish,
    input_tokens = (v_usage -> 'input_tokens')::int, output_tokens = (v_usage -> 'output_tokens')::int,
    seconds = (v_usage -> 'seconds')::int,
    error_code = case when state = 'cancelling' then 'cancelled' end,
    error = case when state = 'cancelling' then 'Cancelled; what was delivered until then is paid.' end
  where id = v_job.id returning state into v_job.state;
  answer := jsonb_build_object('accepted', true, 'reason', null, 'job_state', v_job.state, 'usage', v_usage,
    'earned', infernet.usd(v_earned), 'next', null);
  offer_id := v_attempt.offer_id;
  settings := v_held.settings;
end $$;

-- Takes an attempt's result, and answers with what the node does next in the slot that it leaves.
create function infernet.complete_attempt(
  p_attempt uuid, p_lease uuid, p_output text, p_finish text, p_usage jsonb, p_receipt jsonb) returns jsonb
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_bitmapscan = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
declare
  v      record;
  v_next uuid[];
begin
  v := infernet.complete_one(p_attempt, p_lease, p_output, p_finish, p_usage, p_receipt);
  if v.offer_id is null then
    return v.answer;
  end if;
  v_next := infernet.fill_offer(v.offer_id, 1, true, v.settings);
  return case when v_next is null then v.answer
    else v.answer || jsonb_build_object('next', infernet.offered(v_next[1])) end;
end $$;

-- Takes several results at once, each {"attempt","lease","output","finish","usage","receipt"}; each answer is
-- what complete_attempt says. What is no result refuses the whole call.
create function infernet.complete_attempts(p_results jsonb) returns jsonb
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_bitmapscan = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
declare
  v_node    public.providers := infernet.require_provider();
  v_ids     uuid[];
  v_answers jsonb[];
  v_offers  uuid[];
  v_slots   record;
  v_next    uuid[] := '{}'::uuid[];
begin
  if jsonb_typeof(p_results) is distinct from 'array' or jsonb_array_length(p_results) not between 1 and 1000 then
    perform infernet.refuse(422, 'bad_input', 'The results must be an array of 1 to 1000 objects.');
  end if;
  begin
    select array_agg((r ->> 'attempt')::uuid order by n) into v_ids from jsonb_array_elements(p_results) with ordinality as e (r, n);
    perform (r ->> 'lease')::uuid from jsonb_array_elements(p_results) as e (r);
  exception when invalid_text_representation then
    perform infernet.refuse(422, 'bad_input', format('A result cannot be read: %s.', sqlerrm));
  end;
  if (select count(distinct id) from unnest(v_ids) id) < cardinality(v_ids) then
    perform infernet.refuse(404, 'unknown_attempt', 'An attempt is named twice.');
  end if;
  perform infernet.lock_jobs(v_node.id, v_ids);
  perform infernet.lock_capture_accounts(v_node.id, v_ids);
  select array_agg(c.answer order by e.n), array_agg(c.offer_id order by e.n) into v_answers, v_offers
  from jsonb_array_elements(p_results) with ordinality as e (r, n)
  cross join lateral infernet.complete_one((r ->> 'attempt')::uuid, (r ->> 'lease')::uuid, r ->> 'output', r ->> 'finish',
                                           r -> 'usage', r -> 'receipt') c;
  for v_slots in
    select o.id, count(*)::int as n, row_number() over (order by o.id) = 1 as first
    from unnest(v_offers) o (id) where o.id is not null group by 1 order by 1
  loop
    v_next := v_next || coalesce(infernet.fill_offer(v_slots.id, v_slots.n, v_slots.first, infernet.settings_now()), '{}');
  end loop;
  return jsonb_build_object('results', (
    select jsonb_agg(case when x.next is null then a.answer else a.answer || jsonb_build_object('next', infernet.offered(x.next)) end order by a.n)
    from (select answer, n, count(offer) over (order by n) as slot, offer
          from unnest(v_answers, v_offers) with ordinality as u (answer, offer, n)) a
    left join unnest(v_next) with ordinality as x (next, slot) on a.offer is not null and x.slot = a.slot));
end $$;

-- Answers a result that changes nothing, and keeps it.
create function infernet.late_result(
  p_attempt public.job_attempts, p_job public.jobs, p_lease uuid, p_sha256 text, p_usage jsonb, p_receipt jsonb)
returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_repeated boolean := p_attempt.state = 'completed' and p_attempt.lease = p_lease;
begin
  if not v_repeated and (select count(*) from infernet.late_results r where r.attempt_id = p_attempt.id) < 10 then
    insert into infernet.late_results (attempt_id, received_at, reason, lease, output_sha256, reported, receipt)
    values (p_attempt.id, infernet.clock(), format('attempt is %s', p_attempt.state), p_lease, p_sha256,
            case when octet_length(p_usage::text) <= 4096 then p_usage end,
            case when octet_length(p_receipt::text) <= 16384 then p_receipt end);
  end if;
  return jsonb_build_object('accepted', v_repeated, 'reason', case when v_repeated then 'repeated' else 'fenced' end,
    'job_state', p_job.state, 'usage', case when v_repeated then infernet.usage_json(p_job) end,
    'earned', case when v_repeated then infernet.usd(p_attempt.earned) end, 'next', null);
end $$;

-- Ends an attempt without a result. The consumer's own fault (bad_request) fails the job; a node that
-- shuts down hands its work back uncounted; everything else is tried elsewhere, up to max_attempts.
create function infernet.fail_attempt(p_attempt uuid, p_lease uuid, p_code text, p_message text, p_retry boolean)
returns jsonb
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_bitmapscan = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
declare
  v_node    public.providers := infernet.require_provider();
  v_attempt public.job_attempts := infernet.lock_attempt(p_attempt, v_node.id);
  v_state   public.job_state;
begin
  if p_code is null or p_code not in ('engine_failed', 'engine_unavailable', 'bad_request', 'shutdown', 'deadline') then
    perform infernet.refuse(422, 'bad_input', 'A failure needs one of the codes engine_failed, engine_unavailable, bad_request, shutdown, deadline.');
  end if;
  if v_attempt.state = 'offered' or (v_attempt.state = 'running' and v_attempt.lease = p_lease) then
    v_state := infernet.abandon_attempt(v_attempt, 'failed', p_code,
      coalesce(nullif(btrim(regexp_replace(p_message, '[[:cntrl:]]+', ' ', 'g')), ''), 'The node gave no reason.'),
      p_code <> 'shutdown', p_code = 'bad_request' or not coalesce(p_retry, true));
    return jsonb_build_object('accepted', true, 'job_state', v_state, 'next', infernet.offered(coalesce(
      case when p_code = 'bad_request' then (infernet.fill_offer(v_attempt.offer_id, 1, true, infernet.settings_now()))[1] end,
      -- The same job may come straight back, and no message tells a node of what its own call did.
      (select l.attempt_id from infernet.live_attempts l
       where l.job_id = v_attempt.job_id and l.provider_id = v_node.id))));
  end if;
  return jsonb_build_object('accepted', false, 'next', null,
    'job_state', (select j.state from public.jobs j where j.id = v_attempt.job_id));
end $$;
