-- The queue: jobs that wait for a node, in lines. A line is one model's jobs of one priority, and it is
-- fair between consumers.
--
-- Each waiting job has a tag, its turn: a consumer's next job gets the tag after its last one, and nobody's
-- lies before that of the job last given away, which is the line's time. So consumers take turns, whoever
-- queues ten thousand jobs is passed by whoever queues one, and the next job is found by index alone.
-- (Start-time fair queueing: Goyal, Vin, Cheng, SIGCOMM 1996, with one job as the unit.)
--
-- A row belongs to its job: only whoever holds the job's row writes or deletes it. What matching asks
-- of a job is copied here, so that a free slot finds its job without reading the jobs themselves.

create table infernet.queue (
  job_id      uuid primary key,
  consumer_id uuid not null,
  model_id    uuid not null,
  priority    smallint not null,
  -- Its turn; -1 as long as it does not stand in the line.
  tag         bigint not null,
  -- When the job joins its line: null for one that stands in it, infinity for one that is not paid.
  ready_at    timestamptz,
  deadline_at timestamptz not null,
  input_bound int not null,
  max_tokens  int not null,
  max_seconds int not null,
  price_cap   numeric(38,12) not null,
  min_vram_gb int not null,
  labels      text[] not null,
  region      text,
  exclude     uuid[] not null,
  failed_on   uuid[] not null,
  retry_after timestamptz
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 200);
alter table infernet.queue enable row level security;
create index queue_line on infernet.queue (model_id, priority desc, tag, job_id) where ready_at is null;
create index queue_consumer on infernet.queue (consumer_id, model_id, priority, tag);
create index queue_ready on infernet.queue (ready_at) where ready_at is not null;
create index queue_deadline on infernet.queue (deadline_at);

-- The last tag that each consumer had in a line, for a day.
create table infernet.turns (
  consumer_id uuid not null,
  model_id    uuid not null,
  priority    smallint not null,
  tag         bigint not null,
  updated_at  timestamptz not null,
  primary key (consumer_id, model_id, priority)
) with (autovacuum_vacuum_scale_factor = 0.05);
alter table infernet.turns enable row level security;
create index turns_updated on infernet.turns (updated_at);

-- The time of a line: the tag of the job last given away that still lives, or else of the first that waits.
create function infernet.line_time(p_model uuid, p_priority smallint) returns bigint
language plpgsql stable security definer set search_path = '' as $$
begin
  return coalesce(
    (select l.tag from infernet.live_attempts l
     where l.model_id = p_model and l.priority = p_priority and l.tag is not null order by l.tag desc limit 1),
    (select q.tag from infernet.queue q
     where q.model_id = p_model and q.priority = p_priority and q.ready_at is null order by q.tag limit 1),
    0);
end $$;

-- Takes the tags of a consumer's next p_count jobs in a line, and returns the first of them. Who has none
-- waiting there is at most one turn behind the line's time: what was served while nobody else wanted it,
-- or was cancelled, is not held against anybody.
create function infernet.take_tags(p_consumer uuid, p_model uuid, p_priority smallint, p_count int, p_now timestamptz) returns bigint
language plpgsql security definer set search_path = '' as $$
declare
  v_time bigint := infernet.line_time(p_model, p_priority);
  v_own  bigint;
  v_last bigint;
begin
  select max(q.tag) into v_own from infernet.queue q
  where q.consumer_id = p_consumer and q.model_id = p_model and q.priority = p_priority and q.tag >= 0;
  insert into infernet.turns as t (consumer_id, model_id, priority, tag, updated_at)
  values (p_consumer, p_model, p_priority, greatest(v_own + 1, v_time) + p_count - 1, p_now)
  on conflict (consumer_id, model_id, priority) do update set
    tag = greatest(v_own + 1, least(t.tag, v_time) + 1, v_time) + p_count - 1, updated_at = p_now
  returning t.tag into v_last;
  return v_last - p_count + 1;
end $$;

-- Puts queued (or unpaid) jobs of one consumer, model and priority into the queue, in the order of the
-- array. p_first: at the head of the line, for a job that had its turn and lost its node. What is delayed or
-- unpaid takes no turn until it joins its line.
create function infernet.enqueue(p_jobs uuid[], p_first boolean) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_now timestamptz := infernet.clock();
  v_job public.jobs;
  v_tag bigint;
begin
  select * into strict v_job from public.jobs j where j.id = p_jobs[1];
  v_tag := case when p_first then 0
                when v_job.state = 'unpaid' or v_job.start_at > v_now then null
                else infernet.take_tags(v_job.consumer_id, v_job.model_id, v_job.priority, cardinality(p_jobs), v_now) end;
  insert into infernet.queue (job_id, consumer_id, model_id, priority, tag, ready_at, deadline_at, input_bound, max_tokens,
                              max_seconds, price_cap, min_vram_gb, labels, region, exclude, failed_on, retry_after)
  select j.id, j.consumer_id, j.model_id, j.priority,
         case when p_first then 0 else coalesce(v_tag + p.n - 1, -1) end,
         case when j.state = 'unpaid' then 'infinity' when j.start_at > v_now then j.start_at end, j.deadline_at,
         j.input_bound, j.max_tokens, j.max_seconds, j.price_cap, j.min_vram_gb, j.labels, j.region, j.exclude,
         j.failed_on, j.retry_after
  from unnest(p_jobs) with ordinality as p (id, n) join public.jobs j on j.id = p.id
  on conflict (job_id) do nothing;
end $$;

-- Lets delayed jobs whose time has come join their lines.
create function infernet.join_lines(p_now timestamptz, p_limit int) returns int
language plpgsql security definer set search_path = '' as $$
declare
  v_row   record;
  v_count int := 0;
begin
  for v_row in
    select q.job_id, q.consumer_id, q.model_id, q.priority
    from infernet.queue q join public.jobs j on j.id = q.job_id
    where q.ready_at <= p_now order by q.ready_at limit p_limit for update of j skip locked
  loop
    -- Whoever takes a turn holds its consumer's accounts; waiting here could be for somebody who waits for a slot of ours.
    continue when not infernet.accounts_free(v_row.consumer_id);
    update infernet.queue set ready_at = null, tag = infernet.take_tags(v_row.consumer_id, v_row.model_id, v_row.priority, 1, p_now)
    where job_id = v_row.job_id;
    v_count := v_count + 1;
  end loop;
  return v_count;
end $$;
