-- Jobs, their contents, the attempts that run them, and their history.
--
-- The life of a job:     unpaid -> queued -> assigned -> running -> completed | failed | expired
--                        queued | assigned -> cancelled;  running -> cancelling -> cancelled
--                        assigned | running -> queued again, when an attempt ends without a result
-- The life of an attempt: offered -> running -> completed | failed | lost | cancelled

create type public.job_kind as enum ('chat', 'completion', 'embedding', 'container');
create type public.job_state as enum
  ('unpaid', 'queued', 'assigned', 'running', 'cancelling', 'completed', 'failed', 'cancelled', 'expired');
create type public.attempt_state as enum ('offered', 'running', 'completed', 'failed', 'lost', 'cancelled');
create type public.payment_status as enum ('unpaid', 'invoiced', 'paid');

-- input_bound, max_tokens and max_seconds are what a hold is made from and the most that is ever paid
-- for. digest is of everything the consumer said, so that a repeated submit is told from a changed one.
-- No index covers a column that changes before the end, so that each transition is a HOT update; what
-- must be found by its state is in the queue and among the live attempts. Nothing that is kept for
-- good refers to this table by a foreign key: the record of a job goes when its retention is over.
create table public.jobs (
  id              uuid primary key,
  consumer_id     uuid not null references public.users (id),
  batch_id        uuid,
  batch_item      int check ((batch_item is null) = (batch_id is null)),
  hold_id         uuid not null,
  title           text check (length(title) <= 200),
  kind            public.job_kind not null,
  state           public.job_state not null,
  model_id        uuid not null,
  model_name      text not null,
  input_bound     int not null check (input_bound >= 0),
  max_tokens      int not null check (max_tokens >= 0),
  max_seconds     int not null default 0 check (max_seconds >= 0),
  price_cap       numeric(38,12) not null check (price_cap >= 0),
  digest          bytea not null,
  priority        smallint not null default 0 check (priority between -9 and 9),
  min_vram_gb     int not null default 0,
  labels          text[] not null default '{}',
  region          text,
  prefer          uuid[] not null default '{}',
  exclude         uuid[] not null default '{}',
  start_at        timestamptz,
  -- The current attempt, or the last one.
  attempt_id      uuid,
  attempts        int not null default 0,
  max_attempts    int not null check (max_attempts > 0),
  failed_on       uuid[] not null default '{}',
  retry_after     timestamptz,
  deadline_secs   int not null check (deadline_secs > 0),
  deadline_at     timestamptz not null,
  provider_id     uuid,
  payment_offer   numeric(38,12),
  payment_status  public.payment_status not null default 'paid',
  payment_coin    text,
  payment_invoice text,
  payment_tx_hash text,
  cost            numeric(38,12),
  input_tokens    int,
  output_tokens   int,
  seconds         int,
  finish          text check (finish in ('stop', 'length', 'cancelled')),
  error_code      text,
  error           text,
  created_at      timestamptz not null,
  cancel_at       timestamptz,
  started_at      timestamptz,
  ended_at        timestamptz,
  -- When its contents were deleted (retention.sql); only an ended job's are.
  forgotten_at    timestamptz,
  -- Why it was not given to a node when it was submitted, on its way into the history: null in the table.
  choice          jsonb check (choice is null),
  -- The head of its history: how many events there are, and the digest of the last one.
  events          int not null default 0,
  events_digest   bytea
) with (fillfactor = 60);
alter table public.jobs enable row level security;
create index jobs_consumer on public.jobs (consumer_id, created_at desc);
create index jobs_batch on public.jobs (batch_id, batch_item) where batch_id is not null;
-- The retention's way to what has ended, oldest first: contents to delete, then records. The last update of a
-- job is the one that is not HOT.
create index jobs_ended on public.jobs (ended_at) where ended_at is not null and forgotten_at is null;
create index jobs_forgotten on public.jobs (ended_at) where forgotten_at is not null;

-- What a job used, as every call tells it: seconds of a container, tokens of anything else, null until it is paid.
create function infernet.usage_json(p_job public.jobs) returns jsonb
language sql immutable parallel safe
return case when p_job.seconds is not null then jsonb_build_object('seconds', p_job.seconds)
            when p_job.output_tokens is not null
            then jsonb_build_object('input_tokens', p_job.input_tokens, 'output_tokens', p_job.output_tokens) end;

-- What a job says and answers, apart from its row: only its consumer reads it, and it is deleted, all but
-- its hashes, while the job's history and its payment stay.
create table public.job_contents (
  job_id        uuid primary key references public.jobs (id) on delete cascade,
  input         jsonb,
  input_sha256  text not null,
  output        text,
  output_sha256 text
) with (fillfactor = 70);
alter table public.job_contents enable row level security;

-- One row an assignment: the price of the offer at that moment, why it was chosen, the lease that
-- fences it (made by the agent when it starts), and what came of it. It copies what it needs of the
-- market and refers to it by id alone.
create table public.job_attempts (
  id            uuid primary key default gen_random_uuid(),
  job_id        uuid not null references public.jobs (id) on delete cascade,
  number        int not null check (number > 0),
  offer_id      uuid not null,
  provider_id   uuid not null,
  provider_name text not null,
  owner_id      uuid not null,
  state         public.attempt_state not null default 'offered',
  lease         uuid,
  price_input   numeric(38,12) not null,
  price_output  numeric(38,12) not null,
  price_second  numeric(38,12) not null default 0,
  fee_rate      numeric(9,8) not null,
  model_digest  text,
  at_submit     boolean not null,
  choice        jsonb not null default '{}',
  offered_at    timestamptz not null,
  started_at    timestamptz,
  ended_at      timestamptz,
  cost          numeric(38,12),
  earned        numeric(38,12),
  reported      jsonb,
  receipt       jsonb,
  error_code    text,
  error         text,
  unique (job_id, number)
) with (fillfactor = 60);
alter table public.job_attempts enable row level security;
create index job_attempts_provider on public.job_attempts (provider_id, offered_at desc);

-- The attempts that are offered or running, and nothing else: small, whatever the history is. The
-- primary key is the promise that a job has at most one; whatever else goes wrong, it does not run
-- twice at once. due_at is when the tick must look: at an offer when it should have started, then at
-- the deadline; starting does not touch it, the tick puts it off when it finds the attempt running.
create table infernet.live_attempts (
  job_id      uuid primary key,
  attempt_id  uuid not null,
  offer_id    uuid not null,
  provider_id uuid not null,
  consumer_id uuid not null,
  due_at      timestamptz not null,
  -- Where it stood in line, if it did (see the queue).
  model_id    uuid,
  priority    smallint,
  tag         bigint
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 200);
alter table infernet.live_attempts enable row level security;
create index live_attempts_node on infernet.live_attempts (provider_id);
create index live_attempts_offer on infernet.live_attempts (offer_id);
create index live_attempts_consumer on infernet.live_attempts (consumer_id);
create index live_attempts_due on infernet.live_attempts (due_at);
create index live_attempts_line on infernet.live_attempts (model_id, priority, tag) where tag is not null;

-- How many slots of an offer are taken. Statements over many offers count for themselves: a function with a
-- query in it is not inlined.
create function infernet.busy(p_offer uuid) returns int
language plpgsql stable set search_path = '' as $$
begin
  return (select count(*) from infernet.live_attempts l where l.offer_id = p_offer);
end $$;

-- Jobs that failed for good or expired, until their consumer retries or discards them.
create table infernet.failed_jobs (
  job_id      uuid primary key references public.jobs (id) on delete cascade,
  consumer_id uuid not null,
  failed_at   timestamptz not null
);
alter table infernet.failed_jobs enable row level security;
create index failed_jobs_consumer on infernet.failed_jobs (consumer_id, failed_at desc);

-- Results that came after their attempt had ended, kept as evidence; nothing is paid for them.
create table infernet.late_results (
  id          bigint generated always as identity primary key,
  attempt_id  uuid not null references public.job_attempts (id) on delete cascade,
  received_at timestamptz not null,
  reason      text not null,
  lease       uuid,
  output_sha256 text,
  reported    jsonb,
  receipt     jsonb
);
alter table infernet.late_results enable row level security;
create index late_results_attempt on infernet.late_results (attempt_id);

-- ---------------------------------------------------------------- history

-- The durable history of jobs: transitions, never tokens or prompts. Each event's digest covers the
-- one before it, and the job's row holds the last, so that none can be changed or taken out unnoticed
-- (explain.sql checks it). What a node says of its failures may quote a prompt, and is deleted with it:
-- an event has the hash of it alone.
create table public.job_events (
  job_id     uuid not null,
  seq        int not null check (seq > 0),
  attempt_id uuid,
  event      text not null,
  data       jsonb not null default '{}',
  created_at timestamptz not null,
  digest     bytea not null,
  primary key (job_id, seq)
);
alter table public.job_events enable row level security;

-- The digest of an event that follows one with digest p_before (null for the first).
create function infernet.event_digest(p_before bytea, p_job uuid, p_seq int, p_attempt uuid, p_event text, p_data jsonb, p_at timestamptz)
returns bytea
language sql stable parallel safe
return sha256(coalesce(p_before, '') || convert_to(
  concat_ws('|', p_job, p_seq, p_attempt, p_event, p_data, extract(epoch from p_at)), 'UTF8'));

-- Writes the event of a job's transition; a trigger, so that what is changed by hand is in the history too.
create function infernet.note_job() returns trigger
language plpgsql security definer set search_path = '' as $$
declare
  v_now     timestamptz := infernet.clock();
  v_event   text := new.state;
  v_first   jsonb;
  v_digest  bytea;
  v_data    jsonb;
  v_attempt public.job_attempts;
begin
  if tg_op = 'INSERT' then
    v_first := jsonb_build_object('cap', infernet.usd(new.price_cap), 'digest', encode(new.digest, 'hex')) || coalesce(new.choice, '{}');
    new.choice := null;
    v_digest := infernet.event_digest(null, new.id, 1, null, 'submitted', v_first, v_now);
    new.events := 1;
    new.events_digest := v_digest;
    if new.state = 'queued' then
      insert into public.job_events (job_id, seq, event, data, created_at, digest)
      values (new.id, 1, 'submitted', v_first, v_now, v_digest);
      return new;
    end if;
  elsif old.state in ('assigned', 'running', 'cancelling') and new.state not in ('running', 'completed') then
    select * into v_attempt from public.job_attempts a where a.id = old.attempt_id;
  end if;
  v_data := jsonb_strip_nulls(jsonb_build_object('cost', infernet.usd(new.cost), 'code', coalesce(v_attempt.error_code, new.error_code),
    'message_sha256', encode(sha256(convert_to(coalesce(v_attempt.error, new.error), 'UTF8')), 'hex')));
  new.events := new.events + 1;
  new.events_digest := infernet.event_digest(new.events_digest, new.id, new.events, new.attempt_id, v_event, v_data, v_now);
  insert into public.job_events (job_id, seq, attempt_id, event, data, created_at, digest)
  select e.* from (values (new.id, 1, null, 'submitted', v_first, v_now, v_digest),
                          (new.id, new.events, new.attempt_id, v_event, v_data, v_now, new.events_digest)) as e (job_id, seq, attempt_id, event, data, created_at, digest)
  where e.digest is not null;
  return new;
end $$;

create trigger note_job_insert before insert on public.jobs
  for each row execute function infernet.note_job();
create trigger note_job_update before update of state on public.jobs
  for each row when (old.state is distinct from new.state) execute function infernet.note_job();

-- Gangs, for models too large for one node: reserved as a whole, one row a job and one a member.
create table public.distributed_jobs (
  id             uuid primary key default gen_random_uuid(),
  job_id         uuid not null unique references public.jobs (id),
  coordinator_id uuid references public.providers (id),
  strategy       text not null check (strategy in ('tensor', 'pipeline', 'hybrid', 'rpc')),
  state          text not null default 'reserving'
                 check (state in ('reserving', 'starting', 'running', 'completed', 'failed', 'cancelled')),
  progress       numeric(5,4) not null default 0 check (progress between 0 and 1),
  error          text,
  created_at     timestamptz not null default now(),
  ended_at       timestamptz
);
alter table public.distributed_jobs enable row level security;
create index distributed_jobs_coordinator on public.distributed_jobs (coordinator_id);

create table public.node_roles (
  distributed_job_id uuid not null references public.distributed_jobs (id),
  rank               int not null check (rank >= 0),
  node_id            uuid not null references public.providers (id),
  role               text not null check (role in ('coordinator', 'worker')),
  state              text not null default 'reserved' check (state in ('reserved', 'ready', 'running', 'released', 'failed')),
  primary key (distributed_job_id, rank),
  unique (distributed_job_id, node_id)
);
alter table public.node_roles enable row level security;
create index node_roles_node on public.node_roles (node_id);
