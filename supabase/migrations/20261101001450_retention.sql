-- Retention: finished work leaves in small chunks, one a tick. First, after content_days, what jobs say and
-- answer; then, after record_days, their records. The ledger stays for ever.
--
-- A round waits for nobody: it passes by what others hold, and comes back to it. It locks ended jobs alone,
-- which no submit, start or completion wants, and it runs before the tick takes any slot.
--
-- Where a job's words can be, and what becomes of them:
--   job_contents            input and output are deleted; their hashes stay
--   jobs, job_attempts      the title is deleted; so are messages of errors, which a node may have filled with
--                           what it read, and what a node reported beyond numbers; the codes stay
--   job_attempts.receipt    stays while it has nothing but the fields of the protocol, and is deleted otherwise
--   late_results            what the node sent is deleted; the hash of the output stays
--   batches                 the title is deleted with the last of its jobs
-- Messages of SQL have ids and states only, events hashes and codes, and streams are not stored.

-- What nodes earned by jobs whose record is gone: the total of a node stays true.
create table infernet.past_earnings (
  provider_id uuid primary key,
  amount      numeric(38,12) not null
);
alter table infernet.past_earnings enable row level security;

-- How far the walk over experiences is; one row.
create table infernet.retention_walk (
  only_row    boolean primary key default true check (only_row),
  provider_id uuid not null default '00000000-0000-0000-0000-000000000000',
  consumer_id uuid not null default '00000000-0000-0000-0000-000000000000'
);
alter table infernet.retention_walk enable row level security;
insert into infernet.retention_walk default values;

create index node_commands_ended on public.node_commands (ended_at) where ended_at is not null;
create index batches_titled on public.batches (created_at) where title is not null;

-- ---------------------------------------------------------------- contents

-- Of what a node reported, the numbers that the protocol knows.
create function infernet.plain_usage(p_usage jsonb) returns jsonb
language sql immutable set search_path = '' as $$
  select jsonb_object_agg(u.key, u.value) from jsonb_each(p_usage) u
  where u.key in ('input_tokens', 'output_tokens', 'seconds') and jsonb_typeof(u.value) = 'number'
$$;

-- Whether a text is absent, or short and without any of these characters. (Counted repetition in one
-- expression would be slower by far.)
create function infernet.is_short(p_text text, p_length int, p_strange text) returns boolean
language sql immutable parallel safe
return p_text is null or (length(p_text) <= p_length and p_text !~ p_strange);

-- Whether a receipt has nothing but the fields of the protocol, each in its form, so that it holds no words of a
-- job. What is not compared with the job when it is taken is looked at here; a repeated field would be
-- lost in parsing, and shows in the length.
create function infernet.plain_receipt(p_receipt jsonb) returns boolean
language plpgsql immutable set search_path = '' as $$
declare
  v_said jsonb;
begin
  if p_receipt is null then
    return true;
  elsif p_receipt - array['id', 'pubkey', 'created_at', 'kind', 'tags', 'content', 'sig'] <> '{}'
        or not infernet.is_short(p_receipt ->> 'id', 64, '[^0-9a-f]') or not infernet.is_short(p_receipt ->> 'sig', 128, '[^0-9a-f]')
        or coalesce(jsonb_typeof(p_receipt -> 'created_at'), 'number') <> 'number' or coalesce(p_receipt -> 'tags', '[]') <> '[]' then
    return false;
  end if;
  v_said := (p_receipt ->> 'content')::jsonb;
  return v_said - array['url', 'job', 'attempt', 'node', 'model', 'model_digest', 'input_sha256', 'output_sha256', 'input_tokens',
                        'output_tokens', 'seconds', 'price_input', 'price_output', 'price_second', 'finish'] = '{}'
     and octet_length(p_receipt ->> 'content') <= octet_length(v_said::text)
     and infernet.is_short(v_said ->> 'url', 200, '[^][A-Za-z0-9.:/_-]') and infernet.is_short(v_said ->> 'model_digest', 64, '[^0-9a-f]')
     and infernet.is_short(v_said ->> 'seconds', 20, '[^0-9.]') and infernet.is_short(v_said ->> 'price_second', 60, '[^0-9.]');
exception when invalid_text_representation then
  return false;
end $$;

-- Deletes the words of jobs, everywhere. The caller holds the jobs' rows and has found them ended. A job without
-- its prompt cannot be tried again, so it also leaves the list of those that failed.
create function infernet.forget_contents(p_jobs uuid[], p_now timestamptz) returns void
language plpgsql security definer set search_path = ''
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
declare
  v_gone text := 'The message has been deleted.';
begin
  update public.job_contents c set input = null, output = null
  where c.job_id = any (p_jobs) and (c.input is not null or c.output is not null);
  update public.job_attempts a set error = case when a.error is not null then v_gone end, reported = infernet.plain_usage(a.reported),
    receipt = case when infernet.plain_receipt(a.receipt) then a.receipt end
  where a.job_id = any (p_jobs)
    and (a.error is not null or a.reported is distinct from infernet.plain_usage(a.reported) or not infernet.plain_receipt(a.receipt));
  update infernet.late_results r set reported = null, receipt = null
  where r.attempt_id in (select a.id from public.job_attempts a where a.job_id = any (p_jobs))
    and (r.reported is not null or r.receipt is not null);
  delete from infernet.failed_jobs f where f.job_id = any (p_jobs);
  update public.jobs j set title = null, error = case when j.error is not null then v_gone end, forgotten_at = p_now
  where j.id = any (p_jobs);
  perform infernet.forget_titles(array(select distinct j.batch_id from public.jobs j where j.id = any (p_jobs) and j.batch_id is not null));
end $$;

-- Deletes the titles of those batches whose jobs are all forgotten.
create function infernet.forget_titles(p_batches uuid[]) returns void
language sql security definer set search_path = '' as $$
  update public.batches set title = null where id in (
    select b.id from public.batches b
    where b.id = any (p_batches) and b.title is not null
      and not exists (select from public.jobs j where j.batch_id = b.id and j.forgotten_at is null)
    for update skip locked)
$$;

-- Deletes the prompt, the answer, the title and the error messages of one's own job, now; its hashes, its usage
-- and its payment stay. Only what has ended can be forgotten: a node still needs the prompt of the rest.
-- Safe to repeat.
create function infernet.forget_job(p_job uuid) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_job public.jobs := infernet.own_job(p_job, infernet.require_user(), true);
begin
  if v_job.ended_at is null then
    perform infernet.refuse(409, 'not_ended', format('Job %s is %s.', p_job, v_job.state),
      format('Cancel it first: infernet job cancel %s', p_job));
  elsif v_job.forgotten_at is null then
    perform infernet.forget_contents(array[p_job], infernet.clock());
  end if;
  return infernet.job_json(p_job);
end $$;

-- ---------------------------------------------------------------- records

-- Deletes the records of jobs: their rows, attempts, events and what hangs on them. What the holds and the totals
-- of nodes must know of them is added up first. The caller holds the jobs' rows, whose holds are closed.
create function infernet.delete_records(p_jobs uuid[]) returns void
language plpgsql security definer set search_path = ''
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
declare
  v_batches uuid[] := array(select distinct j.batch_id from public.jobs j where j.id = any (p_jobs) and j.batch_id is not null);
begin
  update public.ledger_holds h set cost_gone = h.cost_gone + g.cost
  from (select j.hold_id, sum(j.cost) as cost from public.jobs j where j.id = any (p_jobs) and j.cost > 0 group by 1) g
  where h.id = g.hold_id;
  insert into infernet.past_earnings as e (provider_id, amount)
  select a.provider_id, sum(a.earned) from public.job_attempts a
  where a.job_id = any (p_jobs) and a.state = 'completed' and a.earned > 0 group by 1
  on conflict (provider_id) do update set amount = e.amount + excluded.amount;

  delete from public.job_events e where e.job_id = any (p_jobs);
  delete from public.node_roles r where r.distributed_job_id in (select d.id from public.distributed_jobs d where d.job_id = any (p_jobs));
  delete from public.distributed_jobs d where d.job_id = any (p_jobs);
  -- Contents, attempts and late results go with the job.
  delete from public.jobs j where j.id = any (p_jobs);
  delete from public.batches where id in (
    select b.id from public.batches b
    where b.id = any (v_batches) and not exists (select from public.jobs j where j.batch_id = b.id) for update skip locked);
end $$;

-- What consumers saw of providers weighs half as much every week: what was not renewed for record_days weighs
-- nothing. Looks at so many, and goes on from there the next time.
create function infernet.forget_experiences(p_before timestamptz, p_limit int) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_nil       uuid := '00000000-0000-0000-0000-000000000000'::uuid;
  v_walk      infernet.retention_walk;
  v_providers uuid[];
  v_consumers uuid[];
begin
  select * into strict v_walk from infernet.retention_walk;
  select array_agg(e.provider_id), array_agg(e.consumer_id) into v_providers, v_consumers
  from (select e.provider_id, e.consumer_id from infernet.experiences e
        where (e.provider_id, e.consumer_id) > (v_walk.provider_id, v_walk.consumer_id)
        order by e.provider_id, e.consumer_id limit p_limit) e;
  delete from infernet.experiences e using unnest(v_providers, v_consumers) as w (provider_id, consumer_id)
  where e.provider_id = w.provider_id and e.consumer_id = w.consumer_id and e.updated_at <= p_before;
  -- At the end it begins again.
  v_walk.provider_id := coalesce(v_providers[p_limit], v_nil);
  v_walk.consumer_id := coalesce(v_consumers[p_limit], v_nil);
  update infernet.retention_walk w set provider_id = v_walk.provider_id, consumer_id = v_walk.consumer_id
  where (w.provider_id, w.consumer_id) <> (v_walk.provider_id, v_walk.consumer_id);
end $$;

-- ---------------------------------------------------------------- a round

-- One round: at most retention_jobs of each kind. Returns how many jobs were forgotten, and how many records went.
create function infernet.retain(p_now timestamptz, p_settings jsonb) returns jsonb
language plpgsql security definer set search_path = ''
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
declare
  v_limit    int := (p_settings -> 'retention_jobs')::int;
  v_content  timestamptz := p_now - make_interval(days => (p_settings -> 'content_days')::int);
  -- A record is never shorter-lived than what is in it.
  v_record   timestamptz := least(v_content, p_now - make_interval(days => (p_settings -> 'record_days')::int));
  v_forget   uuid[];
  v_delete   uuid[];
begin
  v_forget := array(
    select j.id from public.jobs j where j.ended_at <= v_content and j.forgotten_at is null
    order by j.ended_at limit v_limit for update skip locked);
  if v_forget <> '{}' then
    perform infernet.forget_contents(v_forget, p_now);
  end if;
  v_delete := array(
    select j.id from public.jobs j
    where j.ended_at <= v_record and j.forgotten_at is not null
      and not exists (select from public.ledger_holds h where h.id = j.hold_id and h.closed_at is null)
    order by j.ended_at limit v_limit for update of j skip locked);
  if v_delete <> '{}' then
    perform infernet.delete_records(v_delete);
  end if;

  -- Late results come in the order of their ids.
  delete from infernet.late_results r
  where r.received_at <= p_now - make_interval(days => (p_settings -> 'late_result_days')::int)
    and r.id in (select o.id from infernet.late_results o order by o.id limit v_limit);
  delete from public.node_commands where id in (
    select c.id from public.node_commands c where c.ended_at <= v_record order by c.ended_at limit v_limit for update skip locked);
  -- Titles that were passed by because somebody held their batch: by now its last job has ended long ago.
  perform infernet.forget_titles(array(
    select b.id from public.batches b where b.title is not null
      and b.created_at <= v_content - infernet.secs(p_settings, 'delay_secs_max') - infernet.secs(p_settings, 'deadline_secs_max')
    order by b.created_at limit 20));
  perform infernet.forget_experiences(v_record, v_limit);
  return jsonb_build_object('forgotten', cardinality(v_forget), 'deleted', cardinality(v_delete));
end $$;

-- A round whose failure does not stop the tick: health() then shows that contents stay too long.
create function infernet.try_retain(p_now timestamptz, p_settings jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
begin
  return infernet.retain(p_now, p_settings);
exception when others then
  raise warning 'retention failed: %', sqlerrm;
  return jsonb_build_object('failed', sqlerrm);
end $$;
