-- What a consumer calls: submit, look, cancel, retry what failed, and its balance.

-- Why a queued job waits, in a word and a sentence.
create function infernet.waiting(p_job public.jobs) returns jsonb
language plpgsql stable security definer set search_path = ''
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
declare
  v_settings jsonb := infernet.settings_now();
  v_quote    record;
  v_row      infernet.queue;
  v_ahead    bigint;
begin
  if p_job.state <> 'queued' then
    return null;
  end if;
  select * into v_row from infernet.queue q where q.job_id = p_job.id;
  if v_row.ready_at is not null then
    return jsonb_build_object('code', 'delayed', 'message', format('It starts at %s at the earliest.', infernet.time_text(v_row.ready_at)));
  end if;
  select * into v_quote from infernet.quote(p_job.model_id, p_job.input_bound, p_job.max_tokens, p_job.max_seconds);
  if v_quote.online = 0 then
    return jsonb_build_object('code', 'no_node_online',
      'message', format('No node that serves %s is online. The job waits until %s.', p_job.model_name, infernet.time_text(p_job.deadline_at)));
  elsif cardinality(p_job.failed_on) > 0 then
    return jsonb_build_object('code', 'retrying', 'message', 'An attempt failed; the job waits for its next one.');
  elsif infernet.room_to_run(p_job.consumer_id, v_settings) <= 0 then
    return jsonb_build_object('code', 'running_limit', 'message', 'As many of your jobs run as may run at a time.');
  end if;
  select count(*) into v_ahead from (
    select from infernet.queue q
    where q.model_id = v_row.model_id and q.ready_at is null
      and (q.priority > v_row.priority or (q.priority = v_row.priority and (q.tag, q.job_id) < (v_row.tag, v_row.job_id)))
    limit 100) q;
  return jsonb_build_object('code', 'all_busy', 'ahead', v_ahead,
    'message', format('All nodes that serve %s and fit are busy; %s are ahead in the line.', p_job.model_name,
                      case when v_ahead = 100 then '100 jobs or more' else v_ahead || ' jobs' end));
end $$;

create function infernet.time_text(p_at timestamptz) returns text
language sql immutable parallel safe
return to_char(p_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"');

-- A job with its current attempt, as its consumer sees it (docs/protocol.md).
create function infernet.job_answer(p_job public.jobs, p_contents public.job_contents, p_attempt public.job_attempts) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
begin
  return jsonb_build_object(
    'id', p_job.id, 'state', p_job.state, 'kind', p_job.kind, 'model', p_job.model_name, 'title', p_job.title,
    'topic', 'job:' || p_job.consumer_id || ':' || p_job.id, 'batch', p_job.batch_id, 'priority', p_job.priority,
    'attempt', case when p_attempt.id is not null then jsonb_build_object(
      'id', p_attempt.id, 'number', p_attempt.number, 'state', p_attempt.state, 'offset', 0,
      'node', jsonb_build_object('id', p_attempt.provider_id, 'name', p_attempt.provider_name)) end,
    'attempts', p_job.attempts, 'max_attempts', p_job.max_attempts,
    'held', infernet.usd(p_job.price_cap), 'cost', infernet.usd(p_job.cost),
    'usage', infernet.usage_json(p_job),
    'input_sha256', p_contents.input_sha256, 'output', p_contents.output, 'output_sha256', p_contents.output_sha256,
    'finish', p_job.finish,
    'error', case when p_job.error_code is not null then jsonb_build_object('code', p_job.error_code, 'message', p_job.error) end,
    'waiting', case when p_job.state = 'queued' then infernet.waiting(p_job) end, 'receipt', case when p_attempt.state = 'completed' then p_attempt.receipt end,
    'created_at', p_job.created_at, 'started_at', p_job.started_at, 'ended_at', p_job.ended_at, 'deadline_at', p_job.deadline_at,
    'forgotten_at', p_job.forgotten_at);
end $$;

create function infernet.job_json(p_job uuid) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_job      public.jobs;
  v_contents public.job_contents;
  v_attempt  public.job_attempts;
begin
  select * into v_job from public.jobs j where j.id = p_job;
  select * into v_contents from public.job_contents c where c.job_id = p_job;
  select * into v_attempt from public.job_attempts a where a.id = v_job.attempt_id;
  return infernet.job_answer(v_job, v_contents, v_attempt);
end $$;

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

-- A job's needs, checked, into the row that is being made of it.
create function infernet.put_needs(p_job public.jobs, p_needs jsonb) returns public.jobs
language plpgsql stable set search_path = '' as $$
declare
  v_key text;
begin
  if jsonb_typeof(p_needs) <> 'object' or octet_length(p_needs::text) > 4096 then
    perform infernet.refuse(422, 'bad_needs', 'The needs must be a JSON object of at most 4 KB.');
  end if;
  select min(k) into v_key from jsonb_object_keys(p_needs) k where k not in ('vram_gb', 'labels', 'region', 'prefer', 'exclude');
  if v_key is not null then
    perform infernet.refuse(422, 'bad_needs', format('A job cannot need %s.', left(v_key, 40)),
      'Needs are vram_gb, labels, region, prefer and exclude.');
  end if;
  begin
    p_job.min_vram_gb := coalesce((p_needs ->> 'vram_gb')::int, 0);
    p_job.labels := array(select jsonb_array_elements_text(p_needs -> 'labels'));
    p_job.region := p_needs ->> 'region';
    p_job.prefer := array(select jsonb_array_elements_text(p_needs -> 'prefer')::uuid);
    p_job.exclude := array(select jsonb_array_elements_text(p_needs -> 'exclude')::uuid);
  exception when invalid_text_representation or invalid_parameter_value or numeric_value_out_of_range then
    perform infernet.refuse(422, 'bad_needs', format('The needs cannot be read: %s.', sqlerrm));
  end;
  if p_job.min_vram_gb < 0 or cardinality(p_job.labels) > 32 or cardinality(p_job.prefer) > 32 or cardinality(p_job.exclude) > 32 then
    perform infernet.refuse(422, 'bad_needs', 'At most 32 labels, preferred and excluded nodes are taken, and no negative memory.');
  end if;
  return p_job;
end $$;

-- The row of a job that its consumer may submit, all but its id, its input's bounds, its hold and its cap.
create function infernet.draft_job(
  p_settings jsonb, p_user public.users, p_model public.models, p_kind text, p_max_tokens int, p_max_seconds int,
  p_deadline_secs int, p_title text, p_needs jsonb, p_priority int, p_delay_secs int) returns public.jobs
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_now      timestamptz := infernet.clock();
  v_job      public.jobs;
  v_deadline int := coalesce(p_deadline_secs, (p_settings -> 'deadline_secs')::int);
  v_delay    int := coalesce(p_delay_secs, 0);
begin
  if v_deadline not between 1 and (p_settings -> 'deadline_secs_max')::int then
    perform infernet.refuse(422, 'bad_input', format('A deadline is 1 to %s seconds away.', p_settings ->> 'deadline_secs_max'));
  elsif v_delay not between 0 and (p_settings -> 'delay_secs_max')::int then
    perform infernet.refuse(422, 'bad_input', format('A job may be delayed by 0 to %s seconds.', p_settings ->> 'delay_secs_max'));
  elsif length(p_title) > 200 then
    perform infernet.refuse(422, 'bad_input', 'A title has at most 200 characters.');
  elsif coalesce(p_priority, 0) not between -9 and p_user.priority_max then
    perform infernet.refuse(422, 'bad_priority', format('Your jobs'' priority may be -9 to %s.', p_user.priority_max),
      'A higher one is given by the operator of this control plane.');
  elsif p_model.is_image <> (p_kind = 'container') then
    perform infernet.refuse(422, 'bad_input', format('%s is %s.', p_model.name, case when p_model.is_image
      then 'an image, which runs in jobs of kind container' else 'a model, which no container job runs' end));
  end if;
  v_job.consumer_id := p_user.id;
  v_job.title := p_title;
  v_job.kind := p_kind::public.job_kind;
  v_job.state := 'queued';
  v_job.model_id := p_model.id;
  v_job.model_name := p_model.name;
  -- Nothing that is paid by the token comes out of the other kinds.
  v_job.max_tokens := case when p_kind in ('container', 'embedding') then 0 else infernet.output_bound(p_settings, p_kind, p_max_tokens) end;
  v_job.max_seconds := case when p_kind = 'container' then infernet.output_bound(p_settings, p_kind, p_max_seconds) else 0 end;
  v_job.priority := coalesce(p_priority, 0);
  v_job.min_vram_gb := 0;
  v_job.labels := '{}';
  v_job.prefer := '{}';
  v_job.exclude := '{}';
  v_job.failed_on := '{}';
  if coalesce(p_needs, '{}') <> '{}' then
    v_job := infernet.put_needs(v_job, p_needs);
  end if;
  v_job.attempts := 0;
  v_job.max_attempts := (p_settings -> 'max_attempts')::int;
  v_job.start_at := case when v_delay > 0 then v_now + make_interval(secs => v_delay) end;
  v_job.deadline_secs := v_deadline;
  v_job.deadline_at := v_now + make_interval(secs => v_delay + v_deadline);
  v_job.payment_status := 'paid';
  v_job.events := 0;
  v_job.created_at := v_now;
  return v_job;
end $$;

-- Refuses a maximum cost that is none, or lies below what everybody asks (p_lowest; null when nobody asks).
create function infernet.check_cap(p_max_cost numeric, p_lowest numeric, p_model text) returns void
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
end $$;

-- Refuses more waiting jobs than a consumer may have.
create function infernet.check_queued_limit(p_user public.users, p_settings jsonb, p_more int) returns void
language plpgsql stable security definer set search_path = '' as $$
declare
  v_most int := coalesce(p_user.queued_limit, (p_settings -> 'queued_limit')::int);
begin
  if p_more > v_most or exists (select from infernet.queue q where q.consumer_id = p_user.id offset v_most - p_more limit 1) then
    perform infernet.refuse(429, 'queue_full', format('At most %s of your jobs may wait at a time.', v_most),
      'Wait until some have started, or cancel some.');
  end if;
end $$;

-- Takes a job: checks it, sets its cap aside, and gives it to a node if one is free. The id is the
-- client's: the same job submitted again answers as it stands, another one under the same id is refused.
create function infernet.submit_job(
  p_id uuid, p_model text, p_input jsonb, p_kind text, p_max_tokens int, p_max_cost numeric, p_deadline_secs int, p_title text,
  p_needs jsonb, p_priority int, p_delay_secs int, p_max_seconds int) returns jsonb
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_bitmapscan = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
declare
  v_known    record;
  v_user     public.users;
  v_settings jsonb;
  v_digest   bytea := sha256(convert_to(jsonb_build_array(p_model, p_kind, p_max_tokens, p_max_cost, p_deadline_secs, p_title,
                                                          p_input, p_needs, p_priority, p_delay_secs, p_max_seconds)::text, 'UTF8'));
  v_model    public.models;
  v_job      public.jobs;
  v_contents public.job_contents;
  v_attempt  public.job_attempts;
  v_choice   infernet.choice;
  v_room     int;
  v_offer    uuid;
begin
  select u as caller, m as model, j as job, s.value as settings, p.last_tick into strict v_known
  from infernet.settings_row s cross join infernet.pulse p
  left join public.users u on u.id = auth.uid()
  left join public.models m on m.name = p_model
  left join public.jobs j on j.id = p_id;
  v_settings := v_known.settings;
  v_user := v_known.caller;
  if v_user.status is distinct from 'active' then
    v_user := infernet.calling_user();
  end if;
  if p_id is null then
    perform infernet.refuse(422, 'bad_input', 'A job needs an id.', 'Make a UUID (version 7) for it.');
  end if;
  v_job := v_known.job;
  if v_job.id is not null then
    return infernet.repeated_submit(v_job, v_user.id, v_digest);
  end if;
  v_model := v_known.model;
  if v_model.id is null then
    v_model := infernet.find_model(p_model);
  end if;
  perform infernet.check_input(v_settings, p_kind, p_input);
  v_job := infernet.draft_job(v_settings, v_user, v_model, p_kind, p_max_tokens, p_max_seconds, p_deadline_secs, p_title,
                              p_needs, p_priority, p_delay_secs);
  v_job.id := p_id;
  v_job.hold_id := p_id;
  v_job.digest := v_digest;
  v_job.input_bound := case when p_kind = 'container' then 0 else infernet.input_bound(v_settings, p_input) end;
  v_job.price_cap := round(p_max_cost, 12);
  v_choice := infernet.candidates(v_job, v_settings);
  if p_max_cost < v_choice.lowest then
    -- Of a much offered model only a part was looked at.
    v_choice.lowest := (select q.lowest from infernet.quote(v_model.id, v_job.input_bound, v_job.max_tokens, v_job.max_seconds) q);
  end if;
  perform infernet.check_cap(p_max_cost, v_choice.lowest, v_model.name);
  v_job.price_cap := coalesce(v_job.price_cap, v_choice.cap);
  v_job.payment_offer := v_job.price_cap;

  -- From here on in the order of locks: the accounts, a slot, and then only what is new.
  if not infernet.hold(p_id, v_user.id, v_job.price_cap, 1, p_id) then
    select * into v_job from public.jobs j where j.id = p_id;
    return infernet.repeated_submit(v_job, v_user.id, v_digest);
  end if;
  if v_job.start_at is null then
    v_room := infernet.room_of(v_user.id, coalesce(v_user.running_limit, (v_settings -> 'running_limit')::int));
  end if;
  if v_room > 0 then
    v_offer := infernet.take_first(v_choice.offers[1:8], true);
    if v_offer is not null then
      v_job.state := 'assigned';
      v_job.attempts := 1;
      v_job.attempt_id := infernet.new_id();
    end if;
  end if;
  if v_job.state = 'queued' then
    v_job.choice := infernet.unmet(v_choice.record, v_job.start_at, v_room);
  end if;
  v_contents.job_id := p_id;
  v_contents.input := p_input;
  v_contents.input_sha256 := encode(sha256(convert_to(p_input::text, 'UTF8')), 'hex');
  with job as (
    insert into public.jobs select v_job.*
  )
  insert into public.job_contents select v_contents.*;
  if v_job.state = 'assigned' then
    v_attempt := infernet.write_attempts(array[v_job.attempt_id], array[p_id], array[v_user.id], array[v_job.deadline_at],
                                         null, null, v_offer, v_settings, v_choice.record || '{"by": "score"}', true);
  else
    perform infernet.check_queued_limit(v_user, v_settings, 1);
    perform infernet.enqueue(array[p_id], false);
  end if;
  -- Last, because it gives slots away, and whoever holds one waits for nothing more.
  perform infernet.lazy_tick(v_known.last_tick);
  return infernet.job_answer(v_job, v_contents, v_attempt) || '{"created": true}';
end $$;

create function infernet.repeated_submit(p_known public.jobs, p_consumer uuid, p_digest bytea) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
begin
  -- A hold of this id without a job is a batch's, or a job's whose record is gone.
  if p_known.id is null then
    perform infernet.refuse(409, 'id_conflict', 'This id has been used before.', 'Use a new id for a new job.');
  elsif p_known.consumer_id <> p_consumer or p_known.digest <> p_digest then
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

-- Stops a job whose row the caller holds. What waits or has not started ends at once and costs nothing; what
-- runs is told to stop, and what it has delivered until then is paid. An ended job stays as it is. Returns
-- the offer whose slot this frees.
create function infernet.stop_job(p_job public.jobs, p_settings jsonb) returns uuid
language plpgsql security definer set search_path = '' as $$
declare
  v_attempt public.job_attempts;
begin
  case p_job.state
    when 'unpaid', 'queued' then
      perform infernet.end_job(p_job.id, 'cancelled', 'cancelled', 'Cancelled before it was given to a node.');
    when 'assigned' then
      select * into strict v_attempt from public.job_attempts a where a.id = p_job.attempt_id for update;
      perform infernet.close_attempt(v_attempt.id, 'cancelled', 'cancelled', 'Cancelled before it started.');
      perform infernet.end_job(p_job.id, 'cancelled', 'cancelled', 'Cancelled before it started.');
      return v_attempt.offer_id;
    when 'running' then
      update public.jobs set state = 'cancelling', cancel_at = infernet.clock() where id = p_job.id;
      update infernet.live_attempts set due_at = least(due_at, infernet.clock() + infernet.secs(p_settings, 'cancel_secs'))
      where job_id = p_job.id;
    else
      null;
  end case;
  return null;
end $$;

-- Stops one's own job, and passes its slot on. Safe to repeat.
create function infernet.cancel_job(p_job uuid) returns jsonb
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_bitmapscan = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
declare
  v_settings jsonb := infernet.settings_now();
  v_offer    uuid := infernet.stop_job(infernet.own_job(p_job, infernet.require_user(), true), v_settings);
begin
  if v_offer is not null then
    perform infernet.fill_offer(v_offer, 1, true, v_settings);
  end if;
  return infernet.job_json(p_job);
end $$;

-- ---------------------------------------------------------------- jobs that failed for good

-- One's own jobs that failed for good or expired, newest first, with what each attempt said. p_before: only
-- those that failed earlier.
create function infernet.failed_jobs(p_limit int, p_before timestamptz) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_user uuid := infernet.require_user();
begin
  if p_limit is null or p_limit not between 1 and 1000 then
    perform infernet.refuse(422, 'bad_input', 'A list has 1 to 1000 jobs.');
  end if;
  return (select jsonb_build_object('jobs', coalesce(jsonb_agg(jsonb_build_object(
      'id', j.id, 'state', j.state, 'model', j.model_name, 'title', j.title, 'batch', j.batch_id, 'failed_at', f.failed_at,
      'error', jsonb_build_object('code', j.error_code, 'message', j.error),
      'attempts', (select coalesce(jsonb_agg(jsonb_build_object('number', a.number, 'node', a.provider_name, 'state', a.state,
                     'code', a.error_code, 'message', a.error) order by a.number), '[]')
                   from public.job_attempts a where a.job_id = j.id)) order by f.failed_at desc, j.id), '[]'))
    from (select * from infernet.failed_jobs f
          where f.consumer_id = v_user and (p_before is null or f.failed_at < p_before)
          order by f.failed_at desc limit p_limit) f
    join public.jobs j on j.id = f.job_id);
end $$;

-- Lets a job that failed for good try again, from the start: a new hold of the same cap, all its attempts, the
-- same time to its deadline. Safe to repeat: a job that is under way again is answered as it stands.
create function infernet.retry_job(p_job uuid) returns jsonb
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_bitmapscan = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
declare
  v_now  timestamptz := infernet.clock();
  v_user public.users := infernet.calling_user();
  v_job  public.jobs := infernet.own_job(p_job, v_user.id, true);
  v_hold uuid := infernet.derived_id(p_job, 'hold after ' || v_job.hold_id);
begin
  if v_job.state in ('unpaid', 'queued', 'assigned', 'running') then
    return infernet.job_json(p_job);
  elsif not exists (select from infernet.failed_jobs f where f.job_id = p_job) then
    perform infernet.refuse(409, 'not_failed', format('Job %s is %s.', p_job, v_job.state),
      'Only a job that failed or expired, and was not discarded, can be tried again.');
  elsif exists (select from public.job_contents c where c.job_id = p_job and c.input is null) then
    perform infernet.refuse(409, 'forgotten', 'The prompt of this job has been deleted.', 'Submit it as a new job.');
  end if;
  perform infernet.check_queued_limit(v_user, infernet.settings_now(), 1);
  if not infernet.hold(v_hold, v_user.id, v_job.price_cap, 1, p_job) then
    raise exception 'job % that failed has an open hold already', p_job;
  end if;
  delete from infernet.failed_jobs where job_id = p_job;
  update public.jobs set state = 'queued', hold_id = v_hold, attempts = 0, failed_on = '{}', retry_after = null, start_at = null,
    deadline_at = v_now + make_interval(secs => v_job.deadline_secs), ended_at = null, cancel_at = null,
    error_code = null, error = null
  where id = p_job;
  perform infernet.enqueue(array[p_job], false);
  perform infernet.assign_job(p_job, true);
  return infernet.job_json(p_job);
end $$;

-- Takes a job off the list of those that failed for good. Its record stays. Safe to repeat.
create function infernet.discard_job(p_job uuid) returns jsonb
language plpgsql security definer set search_path = '' as $$
begin
  perform infernet.own_job(p_job, infernet.require_user(), true);
  delete from infernet.failed_jobs where job_id = p_job;
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
