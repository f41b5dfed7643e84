-- What a node calls for one attempt: start, complete, fail.

-- Locks the job of an attempt of the calling node, then the attempt: the order that holds everywhere.
create function infernet.lock_attempt(p_attempt uuid, p_node uuid) returns public.job_attempts
language plpgsql security definer set search_path = '' as $$
declare
  v_attempt public.job_attempts;
begin
  perform from public.jobs j
  where j.id = (select a.job_id from public.job_attempts a where a.id = p_attempt and a.provider_id = p_node) for update;
  select * into v_attempt from public.job_attempts a where a.id = p_attempt and a.provider_id = p_node for update;
  if not found then
    perform infernet.refuse(404, 'unknown_attempt', format('Attempt %s is not one of this node.', p_attempt));
  end if;
  return v_attempt;
end $$;

-- Starts an offered attempt under a lease that the agent made, and returns the input. The same lease
-- again answers the same; another one is refused, so that two agents with one key cannot both run it.
create function infernet.start_attempt(p_attempt uuid, p_lease uuid) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_node    public.providers := infernet.require_provider();
  v_now     timestamptz := infernet.clock();
  v_attempt public.job_attempts;
  v_job     public.jobs;
begin
  if p_lease is null then
    perform infernet.refuse(422, 'bad_input', 'A lease is needed.', 'Make a random UUID for it.');
  end if;
  v_attempt := infernet.lock_attempt(p_attempt, v_node.id);
  select * into strict v_job from public.jobs j where j.id = v_attempt.job_id;
  if v_attempt.state = 'running' and v_attempt.lease <> p_lease then
    perform infernet.refuse(409, 'not_yours', 'This attempt runs under another lease.', 'Another agent uses this node''s key.');
  elsif v_attempt.state = 'offered' then
    update public.job_attempts set state = 'running', lease = p_lease, started_at = v_now where id = p_attempt;
    update public.jobs set state = 'running', started_at = coalesce(started_at, v_now) where id = v_job.id;
  elsif v_attempt.state <> 'running' then
    perform infernet.refuse(409, 'gone', format('This attempt is %s.', v_attempt.state), 'Drop it.');
  end if;
  return (select jsonb_build_object(
    'attempt', v_attempt.id, 'job', v_job.id, 'lease', p_lease, 'topic', 'job:' || v_job.consumer_id || ':' || v_job.id,
    'kind', v_job.kind, 'model', v_job.model_name, 'model_digest', v_attempt.model_digest,
    'input', c.input, 'input_sha256', c.input_sha256,
    'max_tokens', v_job.max_tokens, 'output_bytes', infernet.setting_int('output_bytes'),
    'deadline_secs', round(extract(epoch from v_job.deadline_at - v_now), 3),
    'price_input', infernet.usd(v_attempt.price_input), 'price_output', infernet.usd(v_attempt.price_output),
    'stream_rate', infernet.stream_rate())
    from public.job_contents c where c.job_id = v_job.id);
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
    'input_tokens', p_usage -> 'input_tokens', 'output_tokens', p_usage -> 'output_tokens',
    'price_input', infernet.usd(p_attempt.price_input), 'price_output', infernet.usd(p_attempt.price_output));
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
  select min(e.key) into v_wrong from jsonb_each(v_expected) e where v_said -> e.key is distinct from e.value;
  if v_wrong is not null then
    perform infernet.refuse(422, 'bad_receipt', format('The receipt says another %s.', v_wrong));
  end if;
end $$;

-- What is paid for: no more than was stored, was allowed, or could have been made in the time.
create function infernet.bounded_usage(p_usage jsonb, p_job public.jobs, p_attempt public.job_attempts, p_output text)
returns jsonb
language plpgsql stable set search_path = '' as $$
declare
  v_seconds numeric := greatest(0, extract(epoch from infernet.clock() - p_attempt.started_at));
begin
  return jsonb_build_object(
    'input_tokens', least((p_usage ->> 'input_tokens')::numeric, p_job.input_bound)::int,
    'output_tokens', least((p_usage ->> 'output_tokens')::numeric, p_job.max_tokens, octet_length(p_output),
                           ceil(v_seconds * infernet.setting_number('tokens_per_second_max')))::int);
end $$;

-- Takes an attempt's result, settles it, and returns the node's next attempt. A result that comes
-- late, or under another lease, is kept as evidence and changes nothing; a repeated one answers again.
create function infernet.complete_attempt(
  p_attempt uuid, p_lease uuid, p_output text, p_finish text, p_usage jsonb, p_receipt jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_node    public.providers := infernet.require_provider();
  v_attempt public.job_attempts := infernet.lock_attempt(p_attempt, v_node.id);
  v_job     public.jobs;
  v_sha256  text := encode(sha256(convert_to(coalesce(p_output, ''), 'UTF8')), 'hex');
  v_usage   jsonb;
  v_cost    numeric(38,12);
  v_earned  numeric(38,12);
begin
  select * into strict v_job from public.jobs j where j.id = v_attempt.job_id;
  if v_attempt.state <> 'running' or v_attempt.lease is distinct from p_lease then
    return infernet.late_result(v_attempt, v_job, p_lease, v_sha256, p_usage, p_receipt);
  end if;
  if p_output is null or p_finish is null or p_finish not in ('stop', 'length', 'cancelled') then
    perform infernet.refuse(422, 'bad_input', 'A completion needs an output, and finish stop, length or cancelled.');
  elsif octet_length(p_output) > infernet.setting_int('output_bytes') then
    perform infernet.refuse(413, 'output_too_large',
      format('The output has %s bytes; at most %s are taken.', octet_length(p_output), infernet.setting_int('output_bytes')));
  elsif jsonb_typeof(p_usage -> 'input_tokens') is distinct from 'number' or (p_usage ->> 'input_tokens')::numeric < 0
     or jsonb_typeof(p_usage -> 'output_tokens') is distinct from 'number' or (p_usage ->> 'output_tokens')::numeric < 0 then
    perform infernet.refuse(422, 'bad_input', 'The usage needs input_tokens and output_tokens, numbers of at least 0.');
  elsif p_finish = 'cancelled' and v_job.state <> 'cancelling' then
    perform infernet.refuse(409, 'not_cancelled', 'Nobody cancelled this job.', 'Report a failure with fail_attempt.');
  end if;
  perform infernet.check_receipt(p_receipt, v_attempt, v_job, v_node.public_key,
    (select c.input_sha256 from public.job_contents c where c.job_id = v_job.id), v_sha256, p_finish, p_usage);

  v_usage := infernet.bounded_usage(p_usage, v_job, v_attempt, p_output);
  v_cost := infernet.price(v_attempt.price_input, v_attempt.price_output,
                           (v_usage ->> 'input_tokens')::bigint, (v_usage ->> 'output_tokens')::bigint);
  v_earned := infernet.capture(v_attempt, v_cost);
  update public.job_attempts set state = 'completed', ended_at = infernet.clock(), cost = v_cost, earned = v_earned,
    reported = p_usage, receipt = p_receipt
  where id = p_attempt;
  update public.job_contents set output = p_output, output_sha256 = v_sha256 where job_id = v_job.id;
  update public.jobs set state = case when state = 'cancelling' then 'cancelled' else 'completed' end::public.job_state,
    ended_at = infernet.clock(), provider_id = v_node.id, cost = v_cost, finish = p_finish,
    input_tokens = (v_usage ->> 'input_tokens')::int, output_tokens = (v_usage ->> 'output_tokens')::int,
    error_code = case when state = 'cancelling' then 'cancelled' end,
    error = case when state = 'cancelling' then 'Cancelled; what was delivered until then is paid.' end
  where id = v_job.id returning * into v_job;
  perform infernet.release_slot(v_attempt.offer_id);
  return jsonb_build_object('accepted', true, 'reason', null, 'job_state', v_job.state, 'usage', v_usage,
    'earned', infernet.usd(v_earned), 'next', infernet.offered(infernet.fill_slot(v_attempt.offer_id, true)));
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
    'job_state', p_job.state, 'usage', case when v_repeated then jsonb_build_object(
      'input_tokens', p_job.input_tokens, 'output_tokens', p_job.output_tokens) end,
    'earned', case when v_repeated then infernet.usd(p_attempt.earned) end, 'next', null);
end $$;

-- Ends an attempt without a result. The consumer's own fault (bad_request) fails the job; a node that
-- shuts down hands its work back uncounted; everything else is tried elsewhere, up to max_attempts.
create function infernet.fail_attempt(p_attempt uuid, p_lease uuid, p_code text, p_message text, p_retry boolean)
returns jsonb
language plpgsql security definer set search_path = '' as $$
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
      case when p_code = 'bad_request' then infernet.fill_slot(v_attempt.offer_id, true) end,
      -- The same job may come straight back, and no message tells a node of what its own call did.
      (select a.id from public.job_attempts a
       where a.job_id = v_attempt.job_id and a.provider_id = v_node.id and a.state = 'offered'))));
  end if;
  return jsonb_build_object('accepted', false, 'next', null,
    'job_state', (select j.state from public.jobs j where j.id = v_attempt.job_id));
end $$;
