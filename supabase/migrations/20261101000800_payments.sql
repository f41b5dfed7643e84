-- Money that enters and leaves: where deposits arrive, where owners are paid, batches of payouts, and
-- the one audit view of coin movements. Coin amounts live here; the ledger stays USD.

-- An operator's own deposit addresses, mirrored from config/deposit-addresses.json.
create table public.platform_wallets (
  id         uuid primary key default gen_random_uuid(),
  coin       text not null check (coin ~ '^[a-z0-9]{2,10}$'),
  network    text not null check (network ~ '^[a-z0-9-]{2,30}$'),
  address    text not null check (length(address) between 10 and 200),
  label      text check (length(label) <= 80),
  active     boolean not null default true,
  created_at timestamptz not null default now(),
  unique (coin, network, address)
);
alter table public.platform_wallets enable row level security;

-- Where an owner wants to be paid. A change waits until active_from.
create table public.provider_payouts (
  id          uuid primary key default gen_random_uuid(),
  owner_id    uuid not null references public.users (id),
  coin        text not null check (coin ~ '^[a-z0-9]{2,10}$'),
  network     text not null check (network ~ '^[a-z0-9-]{2,30}$'),
  address     text not null check (length(address) between 10 and 200),
  is_default  boolean not null default false,
  active_from timestamptz not null default now(),
  removed_at  timestamptz,
  created_at  timestamptz not null default now(),
  unique (owner_id, coin, network, address)
);
alter table public.provider_payouts enable row level security;
create unique index provider_payouts_default on public.provider_payouts (owner_id) where is_default and removed_at is null;

create table public.payout_batches (
  id         uuid primary key default gen_random_uuid(),
  state      text not null default 'open' check (state in ('open', 'sending', 'done', 'paused')),
  created_at timestamptz not null default now(),
  ended_at   timestamptz
);
alter table public.payout_batches enable row level security;

create table public.payment_transactions (
  id          uuid primary key default gen_random_uuid(),
  direction   text not null check (direction in ('inbound', 'outbound')),
  user_id     uuid not null references public.users (id),
  -- No foreign key: this stays when the job's record goes.
  job_id      uuid,
  payout_id   uuid references public.provider_payouts (id),
  batch_id    uuid references public.payout_batches (id),
  transfer_id uuid references public.ledger_transfers (id),
  coin        text not null check (coin ~ '^[a-z0-9]{2,10}$'),
  network     text not null check (network ~ '^[a-z0-9-]{2,30}$'),
  amount      numeric(38,18) check (amount >= 0),
  amount_usd  numeric(38,12) not null check (amount_usd >= 0),
  address     text check (length(address) <= 200),
  tx_hash     text check (length(tx_hash) <= 200),
  invoice_id  text unique,
  status      text not null default 'pending'
              check (status in ('pending', 'confirmed', 'failed', 'expired', 'underpaid', 'sent', 'unknown')),
  metadata    jsonb not null default '{}',
  created_at  timestamptz not null default now(),
  confirmed_at timestamptz,
  check ((direction = 'outbound') = (payout_id is not null))
);
alter table public.payment_transactions enable row level security;
create index payment_transactions_user on public.payment_transactions (user_id, created_at desc);
create index payment_transactions_job on public.payment_transactions (job_id) where job_id is not null;
create index payment_transactions_payout on public.payment_transactions (payout_id) where payout_id is not null;
create index payment_transactions_batch on public.payment_transactions (batch_id) where batch_id is not null;
create index payment_transactions_transfer on public.payment_transactions (transfer_id) where transfer_id is not null;
