-- The ledger: double entry, USD, append-only.
--
--   accounts   of a party (available, held, earned, ...) or of the platform (fee, goodwill, gateway)
--   transfers  one for each thing that happened; its id is made by whoever caused it, so that a
--              repeat answers 'exists'
--   entries    of one transfer, which sum to zero; a positive amount adds to the account
--   holds      what a job may cost at most, set aside when it is submitted
--
-- Only post_transfer() writes entries and balances. It locks the accounts in the order of their ids.

create type public.ledger_account_kind as enum
  ('available', 'held', 'earned', 'deposits_in_flight', 'payouts_in_flight', 'fee', 'goodwill', 'gateway');
create type public.ledger_transfer_kind as enum
  ('grant', 'hold', 'capture', 'release', 'deposit', 'payout', 'payout_return', 'adjustment');
create type public.hold_state as enum ('open', 'captured', 'released');

-- The fee account is hot, each capture pays into it: it has several shards.
create table public.ledger_accounts (
  id              uuid primary key default gen_random_uuid(),
  kind            public.ledger_account_kind not null,
  party_id        uuid references public.users (id),
  shard           smallint not null default 0,
  may_be_negative boolean not null default false,
  balance         numeric(38,12) not null default 0,
  created_at      timestamptz not null default now(),
  unique nulls not distinct (party_id, kind, shard),
  check (may_be_negative or balance >= 0),
  check ((party_id is null) = (kind in ('fee', 'goodwill', 'gateway')))
) with (fillfactor = 50);
alter table public.ledger_accounts enable row level security;

create table public.ledger_transfers (
  id         uuid primary key,
  kind       public.ledger_transfer_kind not null,
  job_id     uuid references public.jobs (id),
  attempt_id uuid references public.job_attempts (id),
  memo       text check (length(memo) <= 500),
  digest     bytea not null,
  created_at timestamptz not null
);
alter table public.ledger_transfers enable row level security;
create index ledger_transfers_job on public.ledger_transfers (job_id) where job_id is not null;
create index ledger_transfers_attempt on public.ledger_transfers (attempt_id) where attempt_id is not null;

create table public.ledger_entries (
  transfer_id   uuid not null references public.ledger_transfers (id),
  account_id    uuid not null references public.ledger_accounts (id),
  amount        numeric(38,12) not null check (amount <> 0),
  balance_after numeric(38,12) not null,
  created_at    timestamptz not null,
  primary key (transfer_id, account_id)
);
alter table public.ledger_entries enable row level security;
create index ledger_entries_account on public.ledger_entries (account_id, created_at);

create table public.ledger_holds (
  job_id      uuid primary key references public.jobs (id),
  consumer_id uuid not null references public.users (id),
  amount      numeric(38,12) not null check (amount >= 0),
  captured    numeric(38,12) not null default 0 check (captured between 0 and amount),
  state       public.hold_state not null default 'open',
  created_at  timestamptz not null,
  closed_at   timestamptz
);
alter table public.ledger_holds enable row level security;
create index ledger_holds_consumer on public.ledger_holds (consumer_id) where state = 'open';

insert into public.ledger_accounts (kind, shard, may_be_negative)
select 'fee'::public.ledger_account_kind, s, false from generate_series(0, 7) s
union all values ('goodwill'::public.ledger_account_kind, 0, true), ('gateway', 0, true);

-- ---------------------------------------------------------------- what the ledger never allows

create function infernet.refuse_change() returns trigger
language plpgsql set search_path = '' as $$
begin
  raise exception '% is append-only', tg_table_name using errcode = 'restrict_violation',
    hint = 'Correct a mistake with a transfer of its own.';
end $$;

create trigger ledger_entries_fixed before update or delete on public.ledger_entries
  for each row execute function infernet.refuse_change();
create trigger ledger_entries_kept before truncate on public.ledger_entries
  for each statement execute function infernet.refuse_change();
create trigger ledger_transfers_fixed before update or delete on public.ledger_transfers
  for each row execute function infernet.refuse_change();
create trigger ledger_transfers_kept before truncate on public.ledger_transfers
  for each statement execute function infernet.refuse_change();

-- At commit, the entries of each transfer sum to zero. Security definer: on PostgreSQL 15 a deferred
-- trigger runs as whoever commits, who sees no entries under row level security.
create function infernet.check_balanced() returns trigger
language plpgsql security definer set search_path = '' as $$
declare
  v_sum numeric;
begin
  select sum(e.amount) into v_sum from public.ledger_entries e where e.transfer_id = new.transfer_id;
  if v_sum is distinct from 0 then
    raise exception 'transfer % does not balance: its entries sum to %', new.transfer_id, v_sum
      using errcode = 'integrity_constraint_violation';
  end if;
  return null;
end $$;

create constraint trigger ledger_entries_balanced after insert on public.ledger_entries
  deferrable initially deferred for each row execute function infernet.check_balanced();

-- ---------------------------------------------------------------- posting

-- The accounts of a person, made once.
create function infernet.open_accounts(p_party uuid) returns void
language sql security definer set search_path = '' as $$
  insert into public.ledger_accounts (kind, party_id)
  select k, p_party from unnest(array['available', 'held', 'earned']::public.ledger_account_kind[]) k
  on conflict do nothing
$$;

create function infernet.account(p_kind public.ledger_account_kind, p_party uuid, p_shard int default 0) returns uuid
language plpgsql stable security definer set search_path = '' as $$
declare
  v_id uuid;
begin
  select a.id into strict v_id from public.ledger_accounts a
  where a.kind = p_kind and a.party_id is not distinct from p_party and a.shard = p_shard;
  return v_id;
end $$;

-- Posts one transfer: 'created', or 'exists' for a repeat; the same id with other content is refused.
-- p_accounts and p_amounts run side by side; zero amounts are dropped. Locks the accounts by id.
-- Raises check_violation when an account that may not be negative would be.
create function infernet.post_transfer(
  p_id uuid, p_kind public.ledger_transfer_kind, p_accounts uuid[], p_amounts numeric[],
  p_job uuid default null, p_attempt uuid default null, p_memo text default null) returns text
language plpgsql security definer set search_path = '' as $$
declare
  v_now    timestamptz := infernet.clock();
  v_digest bytea := sha256(convert_to(
    concat_ws('|', p_kind, p_accounts::text, p_amounts::numeric(38,12)[]::text, p_job, p_attempt, p_memo), 'UTF8'));
  v_known  bytea;
begin
  insert into public.ledger_transfers (id, kind, job_id, attempt_id, memo, digest, created_at)
  values (p_id, p_kind, p_job, p_attempt, p_memo, v_digest, v_now)
  on conflict (id) do nothing;
  if not found then
    select t.digest into strict v_known from public.ledger_transfers t where t.id = p_id;
    if v_known <> v_digest then
      perform infernet.refuse(409, 'id_conflict', format('Transfer %s exists with other content.', p_id),
        'Use a new id for a new transfer.');
    end if;
    return 'exists';
  end if;

  perform from public.ledger_accounts a where a.id = any (p_accounts) order by a.id for update;
  with posting as (
    select p.account_id, sum(p.amount)::numeric(38,12) as amount
    from unnest(p_accounts, p_amounts) as p (account_id, amount)
    group by p.account_id having sum(p.amount) <> 0
  ), balance as (
    update public.ledger_accounts a set balance = a.balance + p.amount
    from posting p where a.id = p.account_id
    returning a.id, p.amount, a.balance
  )
  insert into public.ledger_entries (transfer_id, account_id, amount, balance_after, created_at)
  select p_id, b.id, b.amount, b.balance, v_now from balance b;
  return 'created';
end $$;

-- Gives a new user the welcome credit, where the operator has set one.
create function infernet.welcome(p_user uuid) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_credit numeric := infernet.setting_number('welcome_credit');
begin
  if v_credit > 0 then
    perform infernet.post_transfer(infernet.derived_id(p_user, 'welcome'), 'grant',
      array[infernet.account('goodwill', null), infernet.account('available', p_user)],
      array[-v_credit, v_credit], null, null, 'Welcome');
  end if;
end $$;

-- ---------------------------------------------------------------- holds

-- Sets a job's cap aside, from its consumer's available money. Refuses when there is too little.
create function infernet.hold(p_job uuid, p_consumer uuid, p_amount numeric) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_available uuid := infernet.account('available', p_consumer);
  v_held      uuid := infernet.account('held', p_consumer);
  v_balance   numeric;
begin
  perform from public.ledger_accounts a where a.id in (v_available, v_held) order by a.id for update;
  select a.balance into strict v_balance from public.ledger_accounts a where a.id = v_available;
  if v_balance < p_amount then
    perform infernet.refuse(402, 'insufficient_funds',
      format('This job needs up to %s USD, and %s USD is available.', infernet.usd(p_amount), infernet.usd(v_balance)),
      'Add money, or lower the maximum cost or the number of tokens.');
  end if;
  insert into public.ledger_holds (job_id, consumer_id, amount, created_at)
  values (p_job, p_consumer, p_amount, infernet.clock());
  perform infernet.post_transfer(infernet.derived_id(p_job, 'hold'), 'hold',
    array[v_available, v_held], array[-p_amount, p_amount], p_job);
end $$;

-- Gives a hold back whole: the job ended without anything delivered. Safe to repeat.
create function infernet.release_hold(p_job uuid) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_hold public.ledger_holds;
begin
  update public.ledger_holds h set state = 'released', closed_at = infernet.clock()
  where h.job_id = p_job and h.state = 'open' returning * into v_hold;
  if found then
    perform infernet.post_transfer(infernet.derived_id(p_job, 'release'), 'release',
      array[infernet.account('held', v_hold.consumer_id), infernet.account('available', v_hold.consumer_id)],
      array[-v_hold.amount, v_hold.amount], p_job);
  end if;
end $$;

-- Pays for what an attempt delivered, from its job's hold, and gives the rest back. The owner gets
-- the cost less the fee, cut at 12 decimals; the fee takes the remainder. Returns what was earned.
create function infernet.capture(p_attempt public.job_attempts, p_cost numeric) returns numeric
language plpgsql security definer set search_path = '' as $$
declare
  v_hold   public.ledger_holds;
  v_owner  uuid;
  v_cost   numeric(38,12);
  v_earned numeric(38,12);
begin
  select * into strict v_hold from public.ledger_holds h where h.job_id = p_attempt.job_id for update;
  if v_hold.state <> 'open' then
    raise exception 'the hold of job % is %', p_attempt.job_id, v_hold.state;
  end if;
  v_cost := least(p_cost, v_hold.amount);
  v_earned := trunc(v_cost * (1 - p_attempt.fee_rate), 12);
  select p.owner_id into strict v_owner from public.providers p where p.id = p_attempt.provider_id;
  update public.ledger_holds set state = 'captured', captured = v_cost, closed_at = infernet.clock()
  where job_id = p_attempt.job_id;
  perform infernet.post_transfer(infernet.derived_id(p_attempt.id, 'capture'), 'capture',
    array[infernet.account('held', v_hold.consumer_id), infernet.account('available', v_hold.consumer_id),
          infernet.account('earned', v_owner),
          infernet.account('fee', null, (hashtext(p_attempt.id::text) & 7))],
    array[-v_hold.amount, v_hold.amount - v_cost, v_earned, v_cost - v_earned],
    p_attempt.job_id, p_attempt.id);
  return v_earned;
end $$;

-- ---------------------------------------------------------------- reading

-- One's own statement: each entry with its transfer. Row level security of the tables decides.
create view public.ledger_statement with (security_invoker = true) as
select t.id, t.created_at, a.kind as account, a.party_id, e.amount, e.balance_after, t.kind, t.job_id, t.memo
from public.ledger_entries e
join public.ledger_transfers t on t.id = e.transfer_id
join public.ledger_accounts a on a.id = e.account_id;

-- Proves that the books are whole; each fault is a sentence. Runs on one snapshot of its own statement.
create function infernet.prove_ledger() returns jsonb
language sql stable security definer set search_path = '' as $$
  with fault as (
    select format('transfer %s sums to %s', e.transfer_id, sum(e.amount)) as what
    from public.ledger_entries e group by e.transfer_id having sum(e.amount) <> 0
    union all
    select format('transfer %s has no entries', t.id) from public.ledger_transfers t
    where not exists (select from public.ledger_entries e where e.transfer_id = t.id)
      and exists (select from public.ledger_holds h where h.job_id = t.job_id and h.amount > 0)
    union all
    select format('account %s (%s) says %s, its entries %s', a.id, a.kind, a.balance, coalesce(s.total, 0))
    from public.ledger_accounts a
    left join (select e.account_id, sum(e.amount) as total from public.ledger_entries e group by 1) s
      on s.account_id = a.id
    where a.balance <> coalesce(s.total, 0)
    union all
    select format('account %s (%s) is negative: %s', a.id, a.kind, a.balance)
    from public.ledger_accounts a where a.balance < 0 and not a.may_be_negative
    union all
    select format('user %s has %s held, and open holds of %s', a.party_id, a.balance, coalesce(h.total, 0))
    from public.ledger_accounts a
    left join (select h.consumer_id, sum(h.amount) as total from public.ledger_holds h
               where h.state = 'open' group by 1) h on h.consumer_id = a.party_id
    where a.kind = 'held' and a.balance <> coalesce(h.total, 0)
    union all
    select format('job %s is %s, and its hold is %s', j.id, j.state, h.state)
    from public.jobs j join public.ledger_holds h on h.job_id = j.id
    where (h.state = 'open') <> (j.state in ('queued', 'assigned', 'running', 'cancelling'))
    union all
    select format('job %s is %s, and has no hold', j.id, j.state)
    from public.jobs j left join public.ledger_holds h on h.job_id = j.id
    where h.job_id is null and j.state <> 'unpaid'
    union all
    select format('job %s cost %s, and its hold paid %s', j.id, coalesce(j.cost, 0), h.captured)
    from public.jobs j join public.ledger_holds h on h.job_id = j.id
    where coalesce(j.cost, 0) <> h.captured
    union all
    select format('job %s was paid %s times', t.job_id, count(*)) from public.ledger_transfers t
    where t.kind = 'capture' group by t.job_id having count(*) > 1
  )
  select jsonb_build_object(
    'ok', not exists (select from fault),
    'faults', coalesce((select jsonb_agg(f.what) from (select what from fault limit 100) f), '[]'),
    'transfers', (select count(*) from public.ledger_transfers),
    'entries', (select count(*) from public.ledger_entries),
    'open_holds', infernet.usd((select coalesce(sum(amount), 0) from public.ledger_holds where state = 'open')),
    'fees', infernet.usd((select sum(balance) from public.ledger_accounts where kind = 'fee')),
    'earned', infernet.usd((select coalesce(sum(balance), 0) from public.ledger_accounts where kind = 'earned')))
$$;
