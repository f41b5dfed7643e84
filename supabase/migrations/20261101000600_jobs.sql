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

-- input_bound and max_tokens are what a hold is made from and the most that is ever paid for.
-- digest is of everything the consumer said, so that a repeated submit is told from a changed one.
create table public.jobs (
  id              uuid primary key,
  consumer_id     uuid not null references public.users (id),
  title           text check (length(title) <= 200),
  kind            public.job_kind not null,
  state           public.job_state not null,
  model_id        uuid not null references public.models (id),
  model_name      text not null,
  input_bound     int not null check (input_bound >= 0),
  max_tokens      int not null check (max_tokens > 0),
  price_cap       numeric(38,12) not null check (price_cap >= 0),
  digest          bytea not null,
  priority        smallint not null default 0,
  attempts        int not null default 0,
  max_attempts    int not null check (max_attempts > 0),
  failed_on       uuid[] not null default '{}',
  retry_after     timestamptz,
  deadline_at     timestamptz not null,
  provider_id     uuid references public.providers (id),
  payment_offer   numeric(38,12),
  payment_status  public.payment_status not null default 'paid',
  payment_coin    text,
  payment_invoice text,
  payment_tx_hash text,
  cost            numeric(38,12),
  input_tokens    int,
  output_tokens   int,
  finish          text check (finish in ('stop', 'length', 'cancelled')),
  error_code      text,
  error           text,
  created_at      timestamptz not null,
  cancel_at       timestamptz,
  started_at      timestamptz,
  ended_at        timestamptz
) with (fillfactor = 80);
alter table public.jobs enable row level security;
create index jobs_consumer on public.jobs (consumer_id, created_at desc);
create index jobs_model on public.jobs (model_id);
create index jobs_provider on public.jobs (provider_id) where provider_id is not null;
create index jobs_queue on public.jobs (model_id, priority desc, created_at) where state = 'queued';
create index jobs_deadline on public.jobs (deadline_at)
  where state in ('unpaid', 'queued', 'assigned', 'running', 'cancelling');
create index jobs_cancelling on public.jobs (cancel_at) where state = 'cancelling';

-- What a job says and answers, apart from its row: only its consumer reads it, and it can be
-- deleted while the job's history and its payment stay.
create table public.job_contents (
  job_id        uuid primary key references public.jobs (id),
  input         jsonb,
  input_sha256  text not null,
  output        text,
  output_sha256 text
);
alter table public.job_contents enable row level security;

-- One row an assignment: the price of the offer at that moment, the lease that fences it (made by
-- the agent when it starts), and what came of it.
create table public.job_attempts (
  id            uuid primary key default gen_random_uuid(),
  job_id        uuid not null references public.jobs (id),
  number        int not null check (number > 0),
  offer_id      uuid not null references public.offers (id),
  provider_id   uuid not null references public.providers (id),
  provider_name text not null,
  state         public.attempt_state not null default 'offered',
  lease         uuid,
  price_input   numeric(38,12) not null,
  price_output  numeric(38,12) not null,
  fee_rate      numeric(9,8) not null,
  model_digest  text,
  at_submit     boolean not null,
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
) with (fillfactor = 80);
alter table public.job_attempts enable row level security;
-- A job has at most one live attempt: whatever else goes wrong, it does not run twice at once.
create unique index job_attempts_live on public.job_attempts (job_id) where state in ('offered', 'running');
create index job_attempts_node on public.job_attempts (provider_id) where state in ('offered', 'running');
create index job_attempts_provider on public.job_attempts (provider_id, ended_at);
create index job_attempts_offer on public.job_attempts (offer_id);
create index job_attempts_offered on public.job_attempts (offered_at) where state = 'offered';

-- Results that came after their attempt had ended, kept as evidence; nothing is paid for them.
create table infernet.late_results (
  id          bigint generated always as identity primary key,
  attempt_id  uuid not null references public.job_attempts (id),
  received_at timestamptz not null,
  reason      text not null,
  lease       uuid,
  output_sha256 text,
  reported    jsonb,
  receipt     jsonb
);
alter table infernet.late_results enable row level security;
create index late_results_attempt on infernet.late_results (attempt_id);

-- The durable history of jobs: transitions, never tokens or prompts.
create table public.job_events (
  id         bigint generated always as identity primary key,
  job_id     uuid not null references public.jobs (id),
  attempt_id uuid references public.job_attempts (id),
  event      text not null,
  data       jsonb not null default '{}',
  created_at timestamptz not null
);
alter table public.job_events enable row level security;
create index job_events_job on public.job_events (job_id, id);
create index job_events_attempt on public.job_events (attempt_id) where attempt_id is not null;

create function infernet.note_job_event() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  insert into public.job_events (job_id, event, data, created_at)
  values (new.id, new.state::text,
          jsonb_strip_nulls(jsonb_build_object('code', new.error_code, 'attempts', new.attempts)), infernet.clock());
  return null;
end $$;

create trigger note_job_insert after insert on public.jobs
  for each row execute function infernet.note_job_event();
create trigger note_job_update after update of state on public.jobs
  for each row when (old.state is distinct from new.state) execute function infernet.note_job_event();

create function infernet.note_attempt_event() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  insert into public.job_events (job_id, attempt_id, event, data, created_at)
  values (new.job_id, new.id, 'attempt_' || new.state,
          jsonb_strip_nulls(jsonb_build_object('number', new.number, 'node', new.provider_name, 'code', new.error_code)),
          infernet.clock());
  return null;
end $$;

create trigger note_attempt_insert after insert on public.job_attempts
  for each row execute function infernet.note_attempt_event();
create trigger note_attempt_update after update of state on public.job_attempts
  for each row when (old.state is distinct from new.state) execute function infernet.note_attempt_event();

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
