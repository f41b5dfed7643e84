-- Nodes: the machines of an owner, one table a role as ordered (providers run jobs, clients hold
-- an identity and a balance, aggregators coordinate gangs), and the narrow table that changes at
-- every heartbeat.

create type public.node_status as enum ('offline', 'online', 'draining', 'paused');
create type public.node_approval as enum ('pending', 'approved', 'suspended', 'revoked');

create table public.providers (
  id         uuid primary key,
  owner_id   uuid not null references public.users (id),
  public_key text not null unique references infernet.keys (public_key),
  name       text not null check (length(name) between 1 and 80),
  status     public.node_status not null default 'offline',
  approval   public.node_approval not null default 'pending',
  is_public  boolean not null default true,
  region     text check (length(region) <= 40),
  labels     text[] not null default '{}' check (cardinality(labels) <= 32),
  vram_gb    int not null default 0 check (vram_gb between 0 and 1000000),
  specs      jsonb not null default '{}' check (pg_column_size(specs) <= 16384),
  version    text check (length(version) <= 40),
  reputation int not null default 50 check (reputation between 0 and 100),
  created_at timestamptz not null default now()
);
create table public.clients (like public.providers including defaults including constraints);
create table public.aggregators (like public.providers including defaults including constraints);
alter table public.clients add primary key (id), add unique (public_key),
  add foreign key (owner_id) references public.users (id),
  add foreign key (public_key) references infernet.keys (public_key);
alter table public.aggregators add primary key (id), add unique (public_key),
  add foreign key (owner_id) references public.users (id),
  add foreign key (public_key) references infernet.keys (public_key);
alter table public.providers enable row level security;
alter table public.clients enable row level security;
alter table public.aggregators enable row level security;
create index providers_owner on public.providers (owner_id);
create index providers_live on public.providers (id) where status <> 'offline';
create index clients_owner on public.clients (owner_id);
create index aggregators_owner on public.aggregators (owner_id);

-- What changes at every heartbeat, and nothing else: no index but the key, room for HOT updates.
-- A node's lease covers all that it runs; lease_until is the server's time. draining is all that matching
-- looks at: the node itself wants no more work (wants_drain), or others stopped it (stopped, kept by
-- node_stops.sql). has_commands: a heartbeat need not look for commands in vain.
create table public.node_liveness (
  node_id      uuid primary key,
  owner_id     uuid not null references public.users (id),
  last_seen    timestamptz not null,
  lease_until  timestamptz not null,
  draining     boolean not null default false,
  wants_drain  boolean not null default false,
  stopped      boolean not null default false,
  has_commands boolean not null default false,
  realtime     boolean not null default true,
  running      int not null default 0
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 100);
alter table public.node_liveness enable row level security;
create index node_liveness_owner on public.node_liveness (owner_id);

-- The control plane's own pulse, one row: when the tick last ran, what it measured, and until when
-- leases are spared after an outage of our own.
create table infernet.pulse (
  only_row           boolean primary key default true check (only_row),
  last_tick          timestamptz not null default 'epoch',
  grace_until        timestamptz not null default 'epoch',
  live_streams       int not null default 0,
  wakeups_per_second numeric not null default 0,
  jobs_completed     bigint not null default 0,
  -- The model whose line the last tick looked at last.
  dispatched_to      uuid not null default '00000000-0000-0000-0000-000000000000'
) with (fillfactor = 50);
alter table infernet.pulse enable row level security;
insert into infernet.pulse default values;

-- Makes the row of a newly enrolled node. A node of an operator's own needs no approval.
create function infernet.make_node(p_key infernet.keys, p_owner uuid, p_name text) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_approval public.node_approval := 'pending'::public.node_approval;
begin
  if infernet.setting_text('node_approval') = 'auto'
     or exists (select from public.operators o where o.user_id = p_owner) then
    v_approval := 'approved';
  end if;
  execute format('insert into public.%I (id, owner_id, public_key, name, approval) values ($1, $2, $3, $4, $5)',
                 p_key.kind || 's')
  using p_key.subject, p_owner, p_key.public_key,
        coalesce(p_name, p_key.kind || '-' || left(p_key.public_key, 8)), v_approval;
  insert into public.node_liveness (node_id, owner_id, last_seen, lease_until, running)
  values (p_key.subject, p_owner, 'epoch', 'epoch', 0);
end $$;

-- The approval of any node, by its key.
create function infernet.node_approval(p_key infernet.keys) returns public.node_approval
language plpgsql stable security definer set search_path = '' as $$
declare
  v_approval public.node_approval;
begin
  execute format('select approval from public.%I where id = $1', p_key.kind || 's')
  into v_approval using p_key.subject;
  return v_approval;
end $$;

-- The calling provider. Suspended and revoked ones are refused here, in every call they make;
-- pending ones pass, and get no work.
create function infernet.require_provider() returns public.providers
language plpgsql stable security definer set search_path = '' as $$
declare
  v_node public.providers;
begin
  select * into v_node from public.providers p where p.id = auth.uid();
  if not found then
    perform infernet.refuse(403, 'not_a_node', 'This call needs the key of a provider.', 'Run: infernet init --role provider');
  elsif v_node.approval in ('suspended', 'revoked') then
    perform infernet.refuse(403, 'suspended', format('Node %s is %s.', v_node.name, v_node.approval),
      'Ask the operator of this control plane to approve it again.');
  end if;
  return v_node;
end $$;
