-- Batches: up to batch_items jobs submitted in one call, with one hold. Each item is a job of its own from then
-- on; the tick and the nodes' own calls give them out as slots become free.

create table public.batches (
  id           uuid primary key,
  consumer_id  uuid not null references public.users (id),
  title        text check (length(title) <= 200),
  kind         public.job_kind not null,
  model_name   text not null,
  items        int not null check (items > 0),
  digest       bytea not null,
  created_at   timestamptz not null,
  cancelled_at timestamptz
);
alter table public.batches enable row level security;
create index batches_consumer on public.batches (consumer_id, created_at desc);

-- The caller's own batch; somebody else's is not there.
create function infernet.own_batch(p_batch uuid, p_lock boolean) returns public.batches
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_user  uuid := infernet.require_user();
  v_batch public.batches;
begin
  if p_lock then
    select * into v_batch from public.batches b where b.id = p_batch and b.consumer_id = v_user for update;
  else
    select * into v_batch from public.batches b where b.id = p_batch and b.consumer_id = v_user;
  end if;
  if not found then
    perform infernet.refuse(404, 'unknown_batch', format('There is no batch %s of yours.', p_batch));
  end if;
  return v_batch;
end $$;

-- How far a batch is: {"id","items","done","states":{state: jobs},"held","cost",…}.
create function infernet.batch_json(p_batch public.batches) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v record;
begin
  select coalesce(jsonb_object_agg(s.state, s.n), '{}') as states, coalesce(sum(s.n) filter (where s.ended), 0)::int as done,
         coalesce(sum(s.held), 0) as held, coalesce(sum(s.cost), 0) as cost, max(s.ended_at) as ended_at
  into v
  from (select j.state, j.ended_at is not null as ended, count(*) as n, sum(j.cost) as cost, max(j.ended_at) as ended_at,
               sum(j.price_cap) filter (where j.ended_at is null) as held
        from public.jobs j where j.batch_id = p_batch.id group by 1, 2) s;
  return jsonb_build_object('id', p_batch.id, 'title', p_batch.title, 'kind', p_batch.kind, 'model', p_batch.model_name,
    'items', p_batch.items, 'done', v.done, 'states', v.states, 'held', infernet.usd(v.held), 'cost', infernet.usd(v.cost),
    'created_at', p_batch.created_at, 'cancelled_at', p_batch.cancelled_at,
    'ended_at', case when v.done = p_batch.items then v.ended_at end);
end $$;

-- The inputs of a batch in their order, each checked; a refusal names the item.
create function infernet.check_items(p_settings jsonb, p_kind text, p_items jsonb) returns jsonb[]
language plpgsql stable set search_path = '' as $$
declare
  v_most  int := (p_settings -> 'batch_items')::int;
  v_items jsonb[];
  v_n     int := 0;
  v_state text;
  v_word  text;
  v_hint  text;
begin
  if jsonb_typeof(p_items) is distinct from 'array' or jsonb_array_length(p_items) not between 1 and v_most then
    perform infernet.refuse(422, 'bad_input', format('A batch is an array of 1 to %s inputs.', v_most), 'Split it.');
  end if;
  v_items := array(select jsonb_array_elements(p_items));
  begin
    for i in 1 .. cardinality(v_items) loop
      v_n := i;
      perform infernet.check_input(p_settings, p_kind, v_items[i]);
    end loop;
  exception when others then
    get stacked diagnostics v_state = returned_sqlstate, v_word = pg_exception_detail, v_hint = pg_exception_hint;
    raise exception using errcode = v_state, message = format('Item %s: %s', v_n, sqlerrm), detail = v_word, hint = v_hint;
  end;
  return v_items;
end $$;

-- What each item of a batch may cost at most: the consumer's maximum, or so many times the price of that offer
-- which is cheapest for the largest item. Refuses a maximum below what everybody asks.
create function infernet.item_caps(
  p_model public.models, p_inputs int[], p_tokens int, p_seconds int, p_max_cost numeric, p_settings jsonb) returns numeric[]
language plpgsql stable security definer set search_path = '' as $$
declare
  v_largest int := (select max(i) from unnest(p_inputs) i);
  v_offer   public.offers;
  v_lowest  numeric;
begin
  select o.* into v_offer from public.offers o where o.model_id = p_model.id and o.enabled and o.approved
  order by infernet.price(o.price_input, o.price_output, o.price_second, v_largest, p_tokens, p_seconds) limit 1;
  v_lowest := infernet.price(v_offer.price_input, v_offer.price_output, v_offer.price_second, v_largest, p_tokens, p_seconds);
  perform infernet.check_cap(p_max_cost, v_lowest, p_model.name);
  if p_max_cost is not null then
    return array_fill(round(p_max_cost, 12), array[cardinality(p_inputs)]);
  end if;
  return array(
    select round(infernet.price(v_offer.price_input, v_offer.price_output, v_offer.price_second, i, p_tokens, p_seconds)
                 * (p_settings -> 'cap_factor')::numeric, 12)
    from unnest(p_inputs) with ordinality as u (i, n) order by n);
end $$;

-- Takes a batch: each of p_items is the input of a job; all else is common to them, and p_max_cost is each job's.
-- The id is the client's, as a job's is; the jobs' ids follow from it.
create function infernet.submit_batch(
  p_id uuid, p_model text, p_items jsonb, p_kind text, p_max_tokens int, p_max_cost numeric, p_deadline_secs int, p_title text,
  p_needs jsonb, p_priority int, p_delay_secs int, p_max_seconds int) returns jsonb
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_bitmapscan = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
declare
  v_user     public.users := infernet.calling_user();
  v_settings jsonb := infernet.settings_now();
  v_digest   bytea := sha256(convert_to(jsonb_build_array(p_model, p_kind, p_max_tokens, p_max_cost, p_deadline_secs, p_title,
                                                          p_items, p_needs, p_priority, p_delay_secs, p_max_seconds)::text, 'UTF8'));
  v_batch    public.batches;
  v_model    public.models;
  v_job      public.jobs;
  v_items    jsonb[];
  v_ids      uuid[];
  v_inputs   int[];
  v_caps     numeric[];
begin
  if p_id is null then
    perform infernet.refuse(422, 'bad_input', 'A batch needs an id.', 'Make a UUID (version 7) for it.');
  end if;
  select * into v_batch from public.batches b where b.id = p_id;
  if found then
    return infernet.repeated_batch(v_batch, v_user.id, v_digest);
  end if;
  v_model := infernet.find_model(p_model);
  v_items := infernet.check_items(v_settings, p_kind, p_items);
  v_job := infernet.draft_job(v_settings, v_user, v_model, p_kind, p_max_tokens, p_max_seconds, p_deadline_secs, p_title,
                              p_needs, p_priority, p_delay_secs);
  perform infernet.check_queued_limit(v_user, v_settings, cardinality(v_items));
  v_ids := array(select infernet.derived_id(p_id, n::text) from generate_series(1, cardinality(v_items)) n order by n);
  v_inputs := array(select case when p_kind = 'container' then 0 else infernet.input_bound(v_settings, i) end
                    from unnest(v_items) with ordinality as u (i, n) order by n);
  v_caps := infernet.item_caps(v_model, v_inputs, v_job.max_tokens, v_job.max_seconds, p_max_cost, v_settings);

  insert into public.batches (id, consumer_id, title, kind, model_name, items, digest, created_at)
  values (p_id, v_user.id, p_title, v_job.kind, v_model.name, cardinality(v_items), v_digest, v_job.created_at)
  on conflict (id) do nothing;
  if not found then
    select * into strict v_batch from public.batches b where b.id = p_id;
    return infernet.repeated_batch(v_batch, v_user.id, v_digest);
  end if;
  if not infernet.hold(p_id, v_user.id, (select sum(c) from unnest(v_caps) c), cardinality(v_items), null) then
    -- A job's hold, or that of a batch whose record is gone.
    perform infernet.refuse(409, 'id_conflict', 'This id has been used before.', 'Use a new id for a new batch.');
  end if;
  insert into public.jobs (id, consumer_id, batch_id, batch_item, hold_id, title, kind, state, model_id, model_name, input_bound,
                           max_tokens, max_seconds, price_cap, digest, priority, min_vram_gb, labels, region, prefer, exclude,
                           start_at, max_attempts, deadline_secs, deadline_at, payment_offer, created_at)
  select i.id, v_user.id, p_id, i.n, p_id, v_job.title, v_job.kind, v_job.state, v_job.model_id, v_job.model_name, i.input_bound,
         v_job.max_tokens, v_job.max_seconds, i.cap, v_digest, v_job.priority, v_job.min_vram_gb, v_job.labels, v_job.region,
         v_job.prefer, v_job.exclude, v_job.start_at, v_job.max_attempts, v_job.deadline_secs, v_job.deadline_at, i.cap, v_job.created_at
  from unnest(v_ids, v_inputs, v_caps) with ordinality as i (id, input_bound, cap, n);
  insert into public.job_contents (job_id, input, input_sha256)
  select i.id, i.input, encode(sha256(convert_to(i.input::text, 'UTF8')), 'hex') from unnest(v_ids, v_items) as i (id, input);
  perform infernet.enqueue(v_ids, false);
  select * into strict v_batch from public.batches b where b.id = p_id;
  return infernet.batch_json(v_batch) || '{"created": true}';
end $$;

create function infernet.repeated_batch(p_known public.batches, p_consumer uuid, p_digest bytea) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
begin
  if p_known.consumer_id <> p_consumer or p_known.digest <> p_digest then
    perform infernet.refuse(409, 'id_conflict', format('Batch %s exists with other content.', p_known.id),
      'Use a new id for a new batch.');
  end if;
  return infernet.batch_json(p_known) || '{"created": false}';
end $$;

-- How far a batch is, and the results of its items after p_after, at most p_limit of them, ended or not.
create function infernet.get_batch(p_batch uuid, p_after int, p_limit int) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_batch public.batches := infernet.own_batch(p_batch, false);
begin
  if p_limit is null or p_limit not between 0 and 1000 then
    perform infernet.refuse(422, 'bad_input', 'At most 1000 items are answered at a time.');
  end if;
  return infernet.batch_json(v_batch) || jsonb_build_object('results', (
    select coalesce(jsonb_agg(jsonb_build_object('item', j.batch_item, 'id', j.id, 'state', j.state, 'output', c.output,
             'finish', j.finish, 'cost', infernet.usd(j.cost),
             'error', case when j.error_code is not null then jsonb_build_object('code', j.error_code, 'message', j.error) end)
             order by j.batch_item), '[]')
    from (select * from public.jobs j where j.batch_id = p_batch and j.batch_item > coalesce(p_after, 0)
          order by j.batch_item limit p_limit) j
    left join public.job_contents c on c.job_id = j.id));
end $$;

-- One's own batches, newest first.
create function infernet.list_batches(p_limit int, p_before timestamptz) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_user uuid := infernet.require_user();
begin
  if p_limit is null or p_limit not between 1 and 100 then
    perform infernet.refuse(422, 'bad_input', 'A list has 1 to 100 batches.');
  end if;
  return jsonb_build_object('batches', (
    select coalesce(jsonb_agg(infernet.batch_json(b) order by b.created_at desc, b.id), '[]')
    from (select * from public.batches b where b.consumer_id = v_user and (p_before is null or b.created_at < p_before)
          order by b.created_at desc limit p_limit) b));
end $$;

-- Stops a batch as a whole: what waits ends at once, what a node has is stopped as by cancel_job. Safe to
-- repeat; what has ended stays as it is.
create function infernet.cancel_batch(p_batch uuid) returns jsonb
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_bitmapscan = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
declare
  v_batch    public.batches := infernet.own_batch(p_batch, true);
  v_now      timestamptz := infernet.clock();
  v_settings jsonb := infernet.settings_now();
  v_waiting  uuid[];
  v_job      public.jobs;
begin
  update public.batches set cancelled_at = coalesce(cancelled_at, v_now) where id = p_batch returning * into v_batch;
  -- All rows first, in the order of their ids; a job that was just given to a node is seen as it is then.
  perform from public.jobs j where j.batch_id = p_batch and j.ended_at is null order by j.id for update;
  v_waiting := array(select j.id from public.jobs j where j.batch_id = p_batch and j.state in ('queued', 'unpaid') order by j.id);
  if v_waiting <> '{}' then
    perform infernet.release_holds(v_waiting);
    update public.jobs set state = 'cancelled', ended_at = v_now, error_code = 'cancelled',
      error = 'Cancelled with its batch before it was given to a node.'
    where id = any (v_waiting);
    delete from infernet.queue where job_id = any (v_waiting);
  end if;
  for v_job in select * from public.jobs j where j.batch_id = p_batch and j.state in ('assigned', 'running') order by j.id loop
    -- The freed slots are filled by their nodes' next calls.
    perform infernet.stop_job(v_job, v_settings);
  end loop;
  return infernet.batch_json(v_batch);
end $$;
