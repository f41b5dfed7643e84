-- The ledger: double entry, USD, append-only.
--
--   accounts   of a party (available, held, earned, ...) or of the platform (fee, goodwill, gateway)
--   transfers  one for each thing that happened; its id is made by whoever caused it, so that a
--              repeat answers 'exists'
--   entries    of one transfer, which sum to zero; a positive amount adds to the account
--   holds      what a job or a batch may cost at most, set aside when it is submitted
--
-- Only post_new() writes entries and balances. Accounts are locked in the order of their ids.

create type public.ledger_account_kind as enum
  ('available', 'held', 'earned', 'deposits_in_flight', 'payouts_in_flight', 'fee', 'goodwill', 'gateway');
create type public.ledger_transfer_kind as enum
  ('grant', 'hold', 'capture', 'release', 'deposit', 'payout', 'payout_return', 'adjustment');

-- The fee account is hot, each capture pays into it: it has 64 shards. An account's id follows from
-- whose it is (infernet.account), so that nobody has to look for it.
create table public.ledger_accounts (
  id              uuid primary key,
  kind            public.ledger_account_kind not null,
  party_id        uuid references public.users (id),
  shard           smallint not null default 0,
  may_be_negative boolean not null default false,
  balance         numeric(38,12) not null default 0,
  created_at      timestamptz not null default now(),
  unique nulls not distinct (party_id, kind, shard),
  check (may_be_negative or balance >= 0),
  check ((party_id is null) = (kind in ('fee', 'goodwill', 'gateway')))
) with (fillfactor = 30);
alter table public.ledger_accounts enable row level security;

create table public.ledger_transfers (
  id         uuid primary key,
  kind       public.ledger_transfer_kind not null,
  job_id     uuid,
  attempt_id uuid,
  memo       text check (length(memo) <= 500),
  digest     bytea not null,
  created_at timestamptz not null
);
alter table public.ledger_transfers enable row level security;
create index ledger_transfers_job on public.ledger_transfers (job_id) where job_id is not null;

create table public.ledger_entries (
  transfer_id   uuid not null,
  account_id    uuid not null,
  amount        numeric(38,12) not null check (amount <> 0),
  balance_after numeric(38,12) not null,
  created_at    timestamptz not null,
  primary key (transfer_id, account_id)
);
alter table public.ledger_entries enable row level security;
create index ledger_entries_account on public.ledger_entries (account_id, created_at);

-- A hold of a job, or of a batch: what is set aside, and what of that was captured and given back. It is
-- open until nothing of it is left.
create table public.ledger_holds (
  id          uuid primary key,
  consumer_id uuid not null,
  amount      numeric(38,12) not null check (amount >= 0),
  captured    numeric(38,12) not null default 0 check (captured >= 0),
  released    numeric(38,12) not null default 0 check (released >= 0),
  open_jobs   int not null check (open_jobs >= 0),
  -- Of captured, what belongs to jobs whose record is gone.
  cost_gone   numeric(38,12) not null default 0 check (cost_gone >= 0),
  created_at  timestamptz not null,
  closed_at   timestamptz,
  check (captured + released <= amount),
  check ((open_jobs = 0) = (closed_at is not null)),
  check (open_jobs > 0 or captured + released = amount)
) with (fillfactor = 70);
alter table public.ledger_holds enable row level security;
create index ledger_holds_consumer on public.ledger_holds (consumer_id, created_at desc);

-- The account of a purpose: a person's, or (null) the platform's.
create function infernet.account(p_kind text, p_party uuid, p_shard int default 0) returns uuid
language sql immutable parallel safe
return md5('account:' || p_kind || ':' || coalesce(p_party::text, '') || ':' || p_shard::text)::uuid;

insert into public.ledger_accounts (id, kind, shard, may_be_negative)
select infernet.account('fee', null, s), 'fee'::public.ledger_account_kind, s, false from generate_series(0, 63) s
union all values (infernet.account('goodwill', null), 'goodwill'::public.ledger_account_kind, 0, true),
                 (infernet.account('gateway', null), 'gateway', 0, true);

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

create trigger ledger_accounts_kept before delete or truncate on public.ledger_accounts
  for each statement execute function infernet.refuse_change();

-- The entries of a transfer are written by one statement, sum to zero, and name a transfer and accounts that
-- there are; so nothing that is added later can unbalance it either. This stands for two foreign keys,
-- which would cost more than the rest of the posting: what they would point to is never deleted.
create function infernet.check_balanced() returns trigger
language plpgsql security definer set search_path = '' as $$
declare
  v_bad record;
begin
  select n.transfer_id as id, sum(n.amount) as total, count(t.id) = count(*) and count(a.id) = count(*) as whole into v_bad
  from new_rows n
  left join public.ledger_transfers t on t.id = n.transfer_id
  left join public.ledger_accounts a on a.id = n.account_id
  group by n.transfer_id
  having sum(n.amount) <> 0 or count(t.id) <> count(*) or count(a.id) <> count(*) limit 1;
  if found then
    raise exception 'transfer % does not balance: its entries sum to %', v_bad.id, v_bad.total
      using errcode = 'integrity_constraint_violation',
      detail = case when v_bad.whole then '' else 'An entry names a transfer or an account that there is not.' end;
  end if;
  return null;
end $$;

create trigger ledger_entries_balanced after insert on public.ledger_entries
  referencing new table as new_rows for each statement execute function infernet.check_balanced();

-- ---------------------------------------------------------------- posting

-- The accounts of a person, made once.
create function infernet.open_accounts(p_party uuid) returns void
language sql security definer set search_path = '' as $$
  insert into public.ledger_accounts (id, kind, party_id)
  select infernet.account(k::text, p_party), k, p_party from unnest(array['available', 'held', 'earned']::public.ledger_account_kind[]) k
  on conflict do nothing
$$;

-- Locks accounts in the order of their ids, which is everybody's order.
create function infernet.lock_accounts(p_accounts uuid[]) returns void
language plpgsql security definer set search_path = '' as $$
begin
  perform from public.ledger_accounts a where a.id = any (p_accounts) order by a.id for update;
end $$;

-- Posts a new transfer, whose id the caller knows to be new; p_accounts (each named once) and p_amounts run
-- side by side, zero amounts are dropped. The caller has locked the accounts. Raises check_violation
-- when an account that may not be negative would be.
create function infernet.post_new(
  p_id uuid, p_kind public.ledger_transfer_kind, p_accounts uuid[], p_amounts numeric[], p_job uuid, p_attempt uuid, p_memo text)
returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_now timestamptz := infernet.clock();
begin
  with transfer as (
    insert into public.ledger_transfers (id, kind, job_id, attempt_id, memo, digest, created_at)
    values (p_id, p_kind, p_job, p_attempt, p_memo,
            infernet.transfer_digest(p_kind, p_accounts, p_amounts, p_job, p_attempt, p_memo), v_now)
  ), balance as (
    update public.ledger_accounts a set balance = a.balance + l.amount
    from unnest(p_accounts, p_amounts) as l (account_id, amount) where a.id = l.account_id and l.amount <> 0
    returning a.id, l.amount, a.balance
  )
  insert into public.ledger_entries (transfer_id, account_id, amount, balance_after, created_at)
  select p_id, b.id, b.amount, b.balance, v_now from balance b;
end $$;

-- Posts many new transfers of one kind, as post_new; the legs run side by side, each an account, an amount and
-- the number of its transfer in p_ids.
create function infernet.post_many(
  p_ids uuid[], p_kind public.ledger_transfer_kind, p_jobs uuid[], p_attempts uuid[],
  p_transfers int[], p_accounts uuid[], p_amounts numeric[]) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_now timestamptz := infernet.clock();
begin
  insert into public.ledger_transfers (id, kind, job_id, attempt_id, digest, created_at)
  select p_ids[l.transfer], p_kind, p_jobs[l.transfer], p_attempts[l.transfer],
         infernet.transfer_digest(p_kind, l.accounts, l.amounts, p_jobs[l.transfer], p_attempts[l.transfer], null), v_now
  from (select l.transfer, array_agg(l.account_id order by l.n) as accounts, array_agg(l.amount order by l.n) as amounts
        from unnest(p_transfers, p_accounts, p_amounts) with ordinality as l (transfer, account_id, amount, n)
        group by l.transfer) l;

  with leg as (
    select l.transfer, l.account_id, l.amount from unnest(p_transfers, p_accounts, p_amounts) as l (transfer, account_id, amount)
    where l.amount <> 0
  ), balance as (
    update public.ledger_accounts a set balance = a.balance + t.amount
    from (select l.account_id, sum(l.amount) as amount from leg l group by l.account_id) t where a.id = t.account_id
    returning a.id, a.balance - t.amount as balance_before
  )
  insert into public.ledger_entries (transfer_id, account_id, amount, balance_after, created_at)
  select p_ids[l.transfer], l.account_id, l.amount,
         b.balance_before + sum(l.amount) over (partition by l.account_id order by l.transfer), v_now
  from leg l join balance b on b.id = l.account_id;
end $$;

create function infernet.transfer_digest(
  p_kind public.ledger_transfer_kind, p_accounts uuid[], p_amounts numeric[], p_job uuid, p_attempt uuid, p_memo text) returns bytea
language sql stable parallel safe
return sha256(convert_to(concat_ws('|', p_kind, p_accounts::text, p_amounts::numeric(38,12)[]::text, p_job, p_attempt, p_memo), 'UTF8'));

-- Posts one transfer: 'created', or 'exists' for a repeat; the same id with other content is refused.
-- p_accounts and p_amounts run side by side; zero amounts are dropped. Raises check_violation when an
-- account that may not be negative would be.
create function infernet.post_transfer(
  p_id uuid, p_kind public.ledger_transfer_kind, p_accounts uuid[], p_amounts numeric[],
  p_job uuid default null, p_attempt uuid default null, p_memo text default null) returns text
language plpgsql security definer set search_path = '' as $$
declare
  v_known bytea;
begin
  perform infernet.lock_accounts(p_accounts);
  select t.digest into v_known from public.ledger_transfers t where t.id = p_id;
  if found then
    if v_known <> infernet.transfer_digest(p_kind, p_accounts, p_amounts, p_job, p_attempt, p_memo) then
      perform infernet.refuse(409, 'id_conflict', format('Transfer %s exists with other content.', p_id),
        'Use a new id for a new transfer.');
    end if;
    return 'exists';
  end if;
  perform infernet.post_new(p_id, p_kind, p_accounts, p_amounts, p_job, p_attempt, p_memo);
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

-- Sets the caps of a job or a batch aside, from its consumer's available money; false when this hold
-- exists. Refuses when there is too little.
create function infernet.hold(p_hold uuid, p_consumer uuid, p_amount numeric, p_jobs int, p_job uuid) returns boolean
language plpgsql security definer set search_path = '' as $$
declare
  v_available uuid := infernet.account('available', p_consumer);
  v_held      uuid := infernet.account('held', p_consumer);
  v_balance   numeric;
  v_new       boolean;
begin
  with account as materialized (
    select a.id, a.balance from public.ledger_accounts a where a.id in (v_available, v_held) order by a.id for update
  ), available as (
    select a.balance from account a where a.id = v_available
  ), hold as (
    insert into public.ledger_holds (id, consumer_id, amount, open_jobs, created_at)
    select p_hold, p_consumer, p_amount, p_jobs, infernet.clock() from available a where a.balance >= p_amount
    on conflict (id) do nothing returning true as new
  )
  select a.balance, h.new into strict v_balance, v_new from available a left join hold h on true;
  if v_new then
    perform infernet.post_new(infernet.derived_id(p_hold, 'hold'), 'hold', array[v_available, v_held], array[-p_amount, p_amount],
                              p_job, null, null);
    return true;
  elsif v_balance < p_amount and not exists (select from public.ledger_holds h where h.id = p_hold) then
    perform infernet.refuse(402, 'insufficient_funds',
      format('This needs up to %s USD, and %s USD is available.', infernet.usd(p_amount), infernet.usd(v_balance)),
      'Add money, or lower the maximum cost or the number of tokens.');
  end if;
  return false;
end $$;

-- Takes the parts of jobs out of their holds; the arrays run side by side, one element a job.
create function infernet.reduce_holds(p_holds uuid[], p_captured numeric[], p_released numeric[]) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update public.ledger_holds h set
    captured = h.captured + d.captured, released = h.released + d.released, open_jobs = h.open_jobs - d.jobs,
    closed_at = case when h.open_jobs = d.jobs then infernet.clock() end
  from (select p.id, sum(p.captured) as captured, sum(p.released) as released, count(*)::int as jobs
        from unnest(p_holds, p_captured, p_released) as p (id, captured, released) group by p.id) d
  where h.id = d.id;
end $$;

-- Gives back what is held for a job: it ended without anything to pay. The caller holds its row and has
-- found it not ended.
create function infernet.release_hold(p_job public.jobs) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_accounts uuid[] := array[infernet.account('held', p_job.consumer_id), infernet.account('available', p_job.consumer_id)];
begin
  perform infernet.lock_accounts(v_accounts);
  update public.ledger_holds h set released = released + p_job.price_cap, open_jobs = open_jobs - 1,
    closed_at = case when open_jobs = 1 then infernet.clock() end
  where h.id = p_job.hold_id;
  perform infernet.post_new(infernet.derived_id(p_job.id, 'release:' || p_job.hold_id), 'release', v_accounts,
                            array[-p_job.price_cap, p_job.price_cap], p_job.id, null, null);
end $$;

-- As release_hold, for many jobs.
create function infernet.release_holds(p_jobs uuid[]) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v record;
begin
  select array_agg(j.id order by j.id) as jobs, array_agg(j.hold_id order by j.id) as holds, array_agg(j.price_cap order by j.id) as caps,
         array_agg(infernet.account('held', j.consumer_id) order by j.id) as held,
         array_agg(infernet.account('available', j.consumer_id) order by j.id) as available,
         array_agg(infernet.derived_id(j.id, 'release:' || j.hold_id) order by j.id) as ids,
         array_agg(-j.price_cap order by j.id) as minus, array_agg(0::numeric) as zero,
         array_agg(j.n::int order by j.id) as n
  into v from (select j.*, row_number() over (order by j.id) as n from public.jobs j where j.id = any (p_jobs)) j;
  perform infernet.lock_accounts(v.held || v.available);
  perform infernet.reduce_holds(v.holds, v.zero, v.caps);
  perform infernet.post_many(v.ids, 'release', v.jobs, null, v.n || v.n, v.held || v.available, v.minus || v.caps);
end $$;

-- The shard of the fee account that an attempt's fee goes to.
create function infernet.fee_account(p_attempt uuid) returns uuid
language sql immutable parallel safe
return infernet.account('fee', null, hashtext(p_attempt::text) & 63);

-- Pays for what an attempt delivered, from its job's hold, and gives the rest back. The owner gets the cost
-- less the fee, cut at 12 decimals; the fee takes the remainder. Returns what was earned. The caller
-- holds the job's row and has found the attempt running.
create function infernet.capture(p_attempt public.job_attempts, p_job public.jobs, p_cost numeric) returns numeric
language plpgsql security definer set search_path = '' as $$
declare
  v_cost     numeric(38,12) := least(p_cost, p_job.price_cap);
  v_earned   numeric(38,12) := trunc(v_cost * (1 - p_attempt.fee_rate), 12);
  v_accounts uuid[] := array[infernet.account('held', p_job.consumer_id), infernet.account('available', p_job.consumer_id),
                             infernet.account('earned', p_attempt.owner_id), infernet.fee_account(p_attempt.id)];
begin
  with account as (
    select from public.ledger_accounts a where a.id = any (v_accounts) order by a.id for update
  )
  update public.ledger_holds h set captured = captured + v_cost, released = released + p_job.price_cap - v_cost,
    open_jobs = open_jobs - 1, closed_at = case when open_jobs = 1 then infernet.clock() end
  where h.id = p_job.hold_id and (select count(*) from account) > 0;
  perform infernet.post_new(infernet.derived_id(p_attempt.id, 'capture'), 'capture', v_accounts,
    array[-p_job.price_cap, p_job.price_cap - v_cost, v_earned, v_cost - v_earned], p_job.id, p_attempt.id, null);
  return v_earned;
end $$;

-- Locks what the captures of a node's attempts will change, for a call that makes several of them: all accounts in
-- one order, before the first is written to.
create function infernet.lock_capture_accounts(p_node uuid, p_attempts uuid[]) returns void
language sql volatile security definer set search_path = '' as $$
  select infernet.lock_accounts(array_agg(distinct k.id))
  from public.job_attempts a
  join public.jobs j on j.id = a.job_id
  cross join lateral unnest(array[infernet.account('held', j.consumer_id), infernet.account('available', j.consumer_id),
                                  infernet.account('earned', a.owner_id), infernet.fee_account(a.id)]) k (id)
  where a.id = any (p_attempts) and a.provider_id = p_node $$;

-- ---------------------------------------------------------------- reading

-- One's own statement: each entry with its transfer. Row level security of the tables decides.
create view public.ledger_statement with (security_invoker = true) as
select t.id, e.created_at, a.kind as account, a.party_id, e.amount, e.balance_after, t.kind, t.job_id, t.memo
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
      and exists (select from public.jobs j where j.id = t.job_id and j.price_cap > 0)
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
    left join (select h.consumer_id, sum(h.amount - h.captured - h.released) as total from public.ledger_holds h
               where h.closed_at is null group by 1) h on h.consumer_id = a.party_id
    where a.kind = 'held' and a.balance <> coalesce(h.total, 0)
    union all
    select format('hold %s of %s has %s open jobs and %s left; its jobs say %s and %s, and cost %s of its %s', h.id, h.amount,
                  h.open_jobs, h.amount - h.captured - h.released, coalesce(j.open, 0), coalesce(j.held, 0),
                  coalesce(j.cost, 0) + h.cost_gone, h.captured)
    from public.ledger_holds h
    left join (select j.hold_id, count(*) filter (where j.state in ('queued', 'assigned', 'running', 'cancelling')) as open,
                      coalesce(sum(j.price_cap) filter (where j.state in ('queued', 'assigned', 'running', 'cancelling')), 0) as held,
                      coalesce(sum(j.cost), 0) as cost
               from public.jobs j where j.state <> 'unpaid' group by 1) j on j.hold_id = h.id
    where (h.open_jobs, h.amount - h.captured - h.released) <> (coalesce(j.open, 0), coalesce(j.held, 0))
       or coalesce(j.cost, 0) + h.cost_gone <> h.captured
    union all
    select format('job %s is %s, and has no hold', j.id, j.state)
    from public.jobs j left join public.ledger_holds h on h.id = j.hold_id
    where h.id is null and j.state <> 'unpaid'
    union all
    select format('job %s was paid %s times', t.job_id, count(*)) from public.ledger_transfers t
    where t.kind = 'capture' group by t.job_id having count(*) > 1
  )
  select jsonb_build_object(
    'ok', not exists (select from fault),
    'faults', coalesce((select jsonb_agg(f.what) from (select what from fault limit 100) f), '[]'),
    'transfers', (select count(*) from public.ledger_transfers),
    'entries', (select count(*) from public.ledger_entries),
    'open_holds', infernet.usd((select coalesce(sum(amount - captured - released), 0) from public.ledger_holds where closed_at is null)),
    'fees', infernet.usd((select sum(balance) from public.ledger_accounts where kind = 'fee')),
    'earned', infernet.usd((select coalesce(sum(balance), 0) from public.ledger_accounts where kind = 'earned')))
$$;
