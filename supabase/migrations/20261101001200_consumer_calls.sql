-- What a consumer calls: submit, look, cancel, and its balance.

-- Why a queued job waits, in a word and a sentence.
create function infernet.waiting(p_job public.jobs) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_quote record;
begin
  if p_job.state <> 'queued' then
    return null;
  end if;
  select * into v_quote from infernet.quote(p_job.model_id, p_job.input_bound, p_job.max_tokens);
  if v_quote.online = 0 then
    return jsonb_build_object('code', 'no_node_online',
      'message', format('No node that serves %s is online. The job waits until %s.', p_job.model_name,
                        to_char(p_job.deadline_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"')));
  elsif cardinality(p_job.failed_on) > 0 then
    return jsonb_build_object('code', 'retrying', 'message', 'An attempt failed; the job waits for its next one.');
  end if;
  return jsonb_build_object('code', 'all_busy', 'message', format('All nodes that serve %s within the cap are busy.', p_job.model_name));
end $$;

-- A job as its consumer sees it (docs/protocol.md).
create function infernet.job_json(p_job uuid) returns jsonb
language sql volatile security definer set search_path = '' as $$
  select jsonb_build_object(
    'id', j.id, 'state', j.state, 'kind', j.kind, 'model', j.model_name, 'title', j.title,
    'topic', 'job:' || j.consumer_id || ':' || j.id,
    'attempt', (select jsonb_build_object('id', a.id, 'number', a.number, 'state', a.state, 'offset', 0,
                                          'node', jsonb_build_object('id', a.provider_id, 'name', a.provider_name))
                from public.job_attempts a where a.job_id = j.id order by a.number desc limit 1),
    'attempts', j.attempts, 'max_attempts', j.max_attempts,
    'held', infernet.usd(j.price_cap), 'cost', infernet.usd(j.cost),
    'usage', case when j.output_tokens is not null
                  then jsonb_build_object('input_tokens', j.input_tokens, 'output_tokens', j.output_tokens) end,
    'input_sha256', c.input_sha256, 'output', c.output, 'output_sha256', c.output_sha256, 'finish', j.finish,
    'error', case when j.error_code is not null then jsonb_build_object('code', j.error_code, 'message', j.error) end,
    'waiting', infernet.waiting(j),
    'receipt', (select a.receipt from public.job_attempts a where a.job_id = j.id and a.state = 'completed'),
    'created_at', j.created_at, 'started_at', j.started_at, 'ended_at', j.ended_at, 'deadline_at', j.deadline_at)
  from public.jobs j left join public.job_contents c on c.job_id = j.id
  where j.id = p_job
$$;

-- The caller's own job; somebody else's is not there.
create function infernet.own_job(p_job uuid, p_consumer uuid, p_lock boolean) returns public.jobs
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_job public.jobs;
begin
  if p_lock then
    select * into v_job from public.jobs j where j.id = p_job and j.consumer_id = p_consumer for update;
  else
    select * into v_job from public.jobs j where j.id = p_job and j.consumer_id = p_consumer;
  end if;
  if not found then
    perform infernet.refuse(404, 'unknown_job', format('There is no job %s of yours.', p_job), 'List them: infernet job ls');
  end if;
  return v_job;
end $$;

-- Takes a job: checks it, sets its cap aside, and gives it to a node if one is free. The id is the
-- client's: the same job submitted again answers as it stands, another one under the same id is refused.
create function infernet.submit_job(
  p_id uuid, p_model text, p_input jsonb, p_kind text, p_max_tokens int, p_max_cost numeric,
  p_deadline_secs int, p_title text) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_now      timestamptz := infernet.clock();
  v_consumer uuid := infernet.require_user();
  v_digest   bytea := sha256(convert_to(concat_ws('|', p_model, p_kind, p_max_tokens, p_max_cost, p_deadline_secs,
                                                  p_title, p_input::text), 'UTF8'));
  v_known    public.jobs;
  v_model    public.models;
  v_input    int;
  v_output   int;
  v_quote    record;
  v_cap      numeric(38,12);
  v_deadline int;
begin
  if p_id is null then
    perform infernet.refuse(422, 'bad_input', 'A job needs an id.', 'Make a UUID (version 7) for it.');
  end if;
  select * into v_known from public.jobs j where j.id = p_id;
  if found then
    return infernet.repeated_submit(v_known, v_consumer, v_digest);
  end if;

  v_model := infernet.find_model(p_model);
  perform infernet.check_input(p_kind, p_input);
  v_input := infernet.input_bound(p_input);
  v_output := infernet.output_bound(p_max_tokens);
  v_deadline := coalesce(p_deadline_secs, infernet.setting_int('deadline_secs'));
  if v_deadline not between 1 and infernet.setting_int('deadline_secs_max') then
    perform infernet.refuse(422, 'bad_input',
      format('A deadline is 1 to %s seconds away.', infernet.setting_int('deadline_secs_max')));
  elsif length(p_title) > 200 then
    perform infernet.refuse(422, 'bad_input', 'A title has at most 200 characters.');
  end if;
  select * into v_quote from infernet.quote(v_model.id, v_input, v_output);
  v_cap := infernet.job_cap(p_max_cost, v_quote.lowest, v_model.name);

  insert into public.jobs (id, consumer_id, title, kind, state, model_id, model_name, input_bound, max_tokens, price_cap,
                           digest, max_attempts, deadline_at, payment_offer, created_at)
  values (p_id, v_consumer, p_title, p_kind::public.job_kind, 'queued', v_model.id, v_model.name, v_input, v_output, v_cap,
          v_digest, infernet.setting_int('max_attempts'), v_now + make_interval(secs => v_deadline), v_cap, v_now)
  on conflict (id) do nothing;
  if not found then
    select * into strict v_known from public.jobs j where j.id = p_id;
    return infernet.repeated_submit(v_known, v_consumer, v_digest);
  end if;
  insert into public.job_contents (job_id, input, input_sha256)
  values (p_id, p_input, encode(sha256(convert_to(p_input::text, 'UTF8')), 'hex'));
  perform infernet.hold(p_id, v_consumer, v_cap);
  perform infernet.lazy_tick();
  perform infernet.assign_job(p_id, true, true);
  return infernet.job_json(p_id) || '{"created": true}';
end $$;

-- What a job may cost: the consumer's maximum, or a multiple of the lowest quote.
create function infernet.job_cap(p_max_cost numeric, p_lowest numeric, p_model text) returns numeric
language plpgsql stable set search_path = '' as $$
begin
  if p_max_cost is null and p_lowest is null then
    perform infernet.refuse(422, 'no_offer', format('Nobody offers %s yet, so there is no price.', p_model),
      'Give a maximum cost to let the job wait for an offer.');
  elsif p_max_cost = 'NaN' or p_max_cost < 0 or p_max_cost > 1000000 then
    perform infernet.refuse(422, 'bad_input', 'The maximum cost must be between 0 and 1000000 USD.');
  elsif p_max_cost < p_lowest then
    perform infernet.refuse(422, 'cap_below_offers',
      format('The maximum cost of %s USD is below every offer; the lowest is %s USD.',
             infernet.usd(p_max_cost), infernet.usd(p_lowest)),
      'Raise the maximum cost, or lower the number of tokens.');
  end if;
  return coalesce(round(p_max_cost, 12), round(p_lowest * infernet.setting_number('cap_factor'), 12));
end $$;

create function infernet.repeated_submit(p_known public.jobs, p_consumer uuid, p_digest bytea) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
begin
  if p_known.consumer_id <> p_consumer or p_known.digest <> p_digest then
    perform infernet.refuse(409, 'id_conflict', format('Job %s exists with other content.', p_known.id),
      'Use a new id for a new job.');
  end if;
  return infernet.job_json(p_known.id) || '{"created": false}';
end $$;

create function infernet.get_job(p_job uuid) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
begin
  perform infernet.own_job(p_job, infernet.require_user(), false);
  return infernet.job_json(p_job);
end $$;

-- Stops a job. What waits or has not started ends at once and costs nothing; what runs is told to
-- stop, and what it has delivered until then is paid. Safe to repeat; an ended job stays as it is.
create function infernet.cancel_job(p_job uuid) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_job     public.jobs := infernet.own_job(p_job, infernet.require_user(), true);
  v_attempt public.job_attempts;
begin
  case v_job.state
    when 'unpaid', 'queued' then
      perform infernet.end_job(p_job, 'cancelled', 'cancelled', 'Cancelled before it was given to a node.');
    when 'assigned' then
      select * into strict v_attempt from public.job_attempts a
      where a.job_id = p_job and a.state = 'offered' for update;
      perform infernet.close_attempt(v_attempt.id, 'cancelled', 'cancelled', 'Cancelled before it started.');
      perform infernet.end_job(p_job, 'cancelled', 'cancelled', 'Cancelled before it started.');
      perform infernet.release_slot(v_attempt.offer_id);
      perform infernet.fill_slot(v_attempt.offer_id, true);
    when 'running' then
      update public.jobs set state = 'cancelling', cancel_at = infernet.clock() where id = p_job;
    else
      null;
  end case;
  return infernet.job_json(p_job);
end $$;

create function infernet.balance() returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_user uuid := infernet.require_user();
begin
  return (select jsonb_object_agg(a.kind, infernet.usd(a.balance)) from public.ledger_accounts a
          where a.party_id = v_user and a.kind in ('available', 'held', 'earned'));
end $$;

create function infernet.whoami() returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_user public.users;
  v_key  infernet.keys;
begin
  select * into v_user from public.users u where u.id = auth.uid();
  if found then
    return jsonb_build_object('id', v_user.id, 'kind', 'user', 'public_key', v_user.public_key, 'name', v_user.name,
                              'status', v_user.status, 'operator', infernet.is_operator(), 'node', null);
  end if;
  select * into v_key from infernet.keys k where k.subject = auth.uid();
  if not found then
    perform infernet.refuse(401, 'not_signed_in', 'This call needs a sign-in.', 'Run: infernet login');
  end if;
  return jsonb_build_object('id', v_key.subject, 'kind', 'node', 'public_key', v_key.public_key, 'operator', false,
                            'status', infernet.node_approval(v_key), 'node', jsonb_build_object('role', v_key.kind));
end $$;
