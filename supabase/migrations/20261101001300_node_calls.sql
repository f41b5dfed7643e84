-- What a node calls: register, heartbeat, claim, start, complete, fail, leave.

-- The share of the Realtime budget that one stream gets, messages a second: (0.6 x limit - wake-ups) / (2 x live
-- streams), because each message counts once sent and once delivered. The tick measures both.
create function infernet.stream_rate() returns numeric
language sql stable security definer set search_path = '' as $$
  select round(greatest(0, (0.6 * infernet.setting_number('realtime_messages_per_second') - p.wakeups_per_second)
                           / (2 * greatest(1, p.live_streams))), 2)
  from infernet.pulse p
$$;

-- Registers what a node is and what it offers, and marks it online. An offer that is not named again is
-- switched off. The inventory is coarse on purpose, and bounded.
create function infernet.register_node(p_inventory jsonb, p_offers jsonb, p_version text) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_key    infernet.keys;
  v_node   public.providers;
  v_offers uuid[] := '{}'::uuid[];
  v_offer  jsonb;
begin
  perform infernet.install_realtime();
  select * into v_key from infernet.keys k where k.subject = auth.uid() and k.kind <> 'user';
  if not found then
    perform infernet.refuse(403, 'not_a_node', 'This call needs the key of a node.', 'Run: infernet init');
  elsif jsonb_typeof(p_inventory) is distinct from 'object' or octet_length(p_inventory::text) > 8192 then
    perform infernet.refuse(413, 'inventory_too_large', 'The inventory must be a JSON object of at most 8 KB.');
  elsif coalesce(jsonb_typeof(p_offers), 'array') <> 'array' or jsonb_array_length(coalesce(p_offers, '[]')) > 200 then
    perform infernet.refuse(422, 'bad_offer', 'Offers must be an array of at most 200 objects.');
  end if;
  execute format('update public.%I set specs = $2, version = left($3, 40), region = left($4, 40) where id = $1',
                 v_key.kind || 's')
  using v_key.subject, p_inventory, p_version, p_inventory ->> 'region';

  if v_key.kind = 'provider' then
    v_node := infernet.require_provider();
    perform infernet.beat(v_node, true, false, 0);
    for v_offer in select * from jsonb_array_elements(coalesce(p_offers, '[]')) loop
      v_offers := v_offers || infernet.put_offer(v_node, v_offer);
    end loop;
    update public.offers set enabled = false where provider_id = v_node.id and enabled and id <> all (v_offers);
    perform infernet.fill_node(v_node.id);
  else
    update public.node_liveness set last_seen = infernet.clock(), lease_until = infernet.clock() + infernet.setting_secs('lease_secs')
    where node_id = v_key.subject;
  end if;
  return infernet.node_json(v_key) || jsonb_build_object(
    'topic', 'node:' || v_key.subject,
    'heartbeat_secs', infernet.setting_number('heartbeat_secs'), 'lease_secs', infernet.setting_number('lease_secs'),
    'offers', infernet.offers_json(v_key.subject), 'server_time', infernet.clock());
end $$;

create function infernet.node_json(p_key infernet.keys) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_node jsonb;
begin
  execute format($sql$
    select jsonb_build_object('id', n.id, 'name', n.name, 'role', $2, 'status', n.status, 'approval', n.approval,
                              'last_seen', nullif(l.last_seen, 'epoch'), 'draining', l.draining, 'owner', n.owner_id)
    from public.%I n join public.node_liveness l on l.node_id = n.id where n.id = $1 $sql$, p_key.kind || 's')
  into v_node using p_key.subject, p_key.kind;
  return v_node;
end $$;

create function infernet.offers_json(p_node uuid) returns jsonb
language sql stable security definer set search_path = '' as $$
  select coalesce(jsonb_agg(jsonb_build_object('id', o.id, 'model', m.name, 'slots', o.slots, 'busy', l.busy,
           'price_input', infernet.usd(o.price_input), 'price_output', infernet.usd(o.price_output)) order by m.name), '[]')
  from public.offers o join public.models m on m.id = o.model_id join infernet.offer_load l on l.offer_id = o.id
  where o.provider_id = p_node and o.enabled
$$;

-- Renews the lease of a node, and so of all that it runs.
create function infernet.beat(p_node public.providers, p_realtime boolean, p_draining boolean, p_running int) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_now timestamptz := infernet.clock();
begin
  update public.node_liveness set last_seen = v_now, lease_until = v_now + infernet.setting_secs('lease_secs'),
    realtime = coalesce(p_realtime, false), draining = coalesce(p_draining, false), running = p_running
  where node_id = p_node.id;
  update public.providers set status = case when p_draining then 'draining' else 'online' end::public.node_status
  where id = p_node.id and status is distinct from case when p_draining then 'draining' else 'online' end::public.node_status;
end $$;

-- Fills the free slots of a node from the queue; skips what others hold.
create function infernet.fill_node(p_node uuid) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_offer record;
begin
  for v_offer in
    select o.id, l.slots - l.busy as free from public.offers o join infernet.offer_load l on l.offer_id = o.id
    where o.provider_id = p_node and o.enabled and o.approved and l.busy < l.slots order by o.id
  loop
    for i in 1 .. v_offer.free loop
      exit when infernet.fill_slot(v_offer.id, false) is null;
    end loop;
  end loop;
end $$;

-- What a node must know: attempts offered to it, attempts to cancel, attempts it holds in vain.
create function infernet.node_work(p_node uuid, p_running uuid[]) returns jsonb
language sql stable security definer set search_path = '' as $$
  select jsonb_build_object(
    'attempts', (select coalesce(jsonb_agg(infernet.offered(a.id) order by a.offered_at), '[]')
                 from public.job_attempts a where a.provider_id = p_node and a.state = 'offered'),
    'cancel', (select coalesce(jsonb_agg(a.id), '[]') from public.job_attempts a join public.jobs j on j.id = a.job_id
               where a.provider_id = p_node and a.state = 'running' and j.state = 'cancelling'),
    'lost', (select coalesce(jsonb_agg(r.id), '[]') from unnest(p_running) as r (id)
             where not exists (select from public.job_attempts a
                               where a.id = r.id and a.provider_id = p_node and a.state in ('offered', 'running'))),
    'commands', '[]'::jsonb,
    'stream_rate', infernet.stream_rate(), 'server_time', infernet.clock())
$$;

-- Gives up running attempts that their own node does not name: it has restarted, or has forgotten them.
create function infernet.lose_forgotten(p_node uuid, p_running uuid[], p_before timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_attempt public.job_attempts;
begin
  for v_attempt in
    select a.* from public.job_attempts a join public.jobs j on j.id = a.job_id
    where a.provider_id = p_node and a.state = 'running' and a.started_at <= p_before
      and a.id <> all (coalesce(p_running, '{}'))
    order by j.id for update of j skip locked
  loop
    select * into v_attempt from public.job_attempts a where a.id = v_attempt.id and a.state = 'running' for update;
    continue when not found;
    perform infernet.abandon_attempt(v_attempt, 'lost', 'node_restarted', 'The node no longer runs this attempt.', true, false);
  end loop;
end $$;

-- The pulse of a node, and its catch-up: renews all its leases, and returns what it missed.
create function infernet.heartbeat(p_running uuid[], p_realtime boolean, p_draining boolean) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_node public.providers := infernet.require_provider();
begin
  perform infernet.beat(v_node, p_realtime, p_draining, cardinality(coalesce(p_running, '{}')));
  perform infernet.lose_forgotten(v_node.id, p_running, infernet.clock() - infernet.setting_secs('forgotten_secs'));
  if not coalesce(p_draining, false) then
    perform infernet.fill_node(v_node.id);
  end if;
  perform infernet.lazy_tick();
  return infernet.node_work(v_node.id, p_running)
      || jsonb_build_object('heartbeat_secs', infernet.setting_number('heartbeat_secs'));
end $$;

-- What is offered to this node now. With p_restart the agent has just started: what it does not name
-- is lost at once, and goes elsewhere.
create function infernet.claim_attempts(p_running uuid[], p_restart boolean) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_node public.providers := infernet.require_provider();
begin
  if p_restart then
    perform infernet.lose_forgotten(v_node.id, p_running, 'infinity');
  end if;
  perform infernet.fill_node(v_node.id);
  return infernet.node_work(v_node.id, p_running);
end $$;

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

-- Goes offline: what was offered or runs here is handed back, uncounted, and goes elsewhere.
create function infernet.leave() returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_node    public.providers := infernet.require_provider();
  v_attempt public.job_attempts;
  v_count   int := 0;
begin
  update public.node_liveness set lease_until = infernet.clock(), draining = false, running = 0 where node_id = v_node.id;
  update public.providers set status = 'offline' where id = v_node.id and status <> 'offline';
  for v_attempt in
    select a.* from public.job_attempts a join public.jobs j on j.id = a.job_id
    where a.provider_id = v_node.id and a.state in ('offered', 'running') order by j.id for update of j
  loop
    select * into v_attempt from public.job_attempts a
    where a.id = v_attempt.id and a.state in ('offered', 'running') for update;
    continue when not found;
    perform infernet.abandon_attempt(v_attempt, 'lost', 'node_left', 'The node went offline.', false, false);
    v_count := v_count + 1;
  end loop;
  return jsonb_build_object('status', 'offline', 'handed_back', v_count);
end $$;

-- A node about itself: its row, what it runs, and what it earned.
create function infernet.node_status() returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_key infernet.keys;
  v_now timestamptz := infernet.clock();
begin
  select * into v_key from infernet.keys k where k.subject = auth.uid() and k.kind <> 'user';
  if not found then
    perform infernet.refuse(403, 'not_a_node', 'This call needs the key of a node.', 'Run: infernet init');
  end if;
  return (select jsonb_build_object(
    'node', infernet.node_json(v_key), 'offers', infernet.offers_json(v_key.subject),
    'running', (select count(*) from public.job_attempts a where a.provider_id = v_key.subject and a.state in ('offered', 'running')),
    'earnings', jsonb_build_object(
      'today', infernet.usd(coalesce(sum(a.earned) filter (where a.ended_at >= date_trunc('day', v_now at time zone 'UTC') at time zone 'UTC'), 0)),
      'days30', infernet.usd(coalesce(sum(a.earned) filter (where a.ended_at >= v_now - interval '30 days'), 0)),
      'total', infernet.usd(coalesce(sum(a.earned), 0))))
    from public.job_attempts a where a.provider_id = v_key.subject and a.state = 'completed');
end $$;
