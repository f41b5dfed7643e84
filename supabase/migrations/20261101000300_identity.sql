-- Who is who: people (users, some of them operators), the keys of people and nodes, enrolment
-- codes, consumed login events, rate limits, and who is calling.

create type public.user_status as enum ('active', 'suspended');

-- People: owners, consumers, operators; one row a key.
create table public.users (
  id         uuid primary key default gen_random_uuid(),
  public_key text not null unique check (public_key ~ '^[0-9a-f]{64}$'),
  name       text check (length(name) <= 80),
  status     public.user_status not null default 'active',
  -- Set by operators; null is the market's setting of that name.
  priority_max  smallint not null default 0 check (priority_max between 0 and 9),
  queued_limit  int check (queued_limit >= 0),
  running_limit int check (running_limit >= 0),
  created_at timestamptz not null default now()
);
alter table public.users enable row level security;

-- Operators are made by service_role alone (Studio, `infernet up`).
create table public.operators (
  user_id    uuid primary key references public.users (id),
  created_at timestamptz not null default now()
);
alter table public.operators enable row level security;

-- Every key that may log in, once: a key is a person's or one node's, never both.
create table infernet.keys (
  public_key text primary key check (public_key ~ '^[0-9a-f]{64}$'),
  subject    uuid not null unique,
  kind       text not null check (kind in ('user', 'provider', 'client', 'aggregator'))
);
alter table infernet.keys enable row level security;

-- One-time codes by which an owner lets a node in; only a digest is kept.
create table infernet.enrolments (
  digest     bytea primary key,
  owner_id   uuid not null references public.users (id),
  role       text not null check (role in ('provider', 'client', 'aggregator')),
  expires_at timestamptz not null,
  used_at    timestamptz,
  used_by    uuid
);
alter table infernet.enrolments enable row level security;
create index enrolments_owner on infernet.enrolments (owner_id);

-- Login events that were used, kept for twice the window in which they are accepted.
create table infernet.login_events (
  event_id text primary key check (event_id ~ '^[0-9a-f]{64}$'),
  used_at  timestamptz not null
);
alter table infernet.login_events enable row level security;
create index login_events_used on infernet.login_events (used_at);

create table infernet.rate_limits (
  bucket       text not null,
  window_start timestamptz not null,
  hits         int not null,
  primary key (bucket, window_start)
) with (fillfactor = 70);
alter table infernet.rate_limits enable row level security;

-- Counts one hit and refuses the call when the bucket is full. Windows are fixed, so up to twice
-- the limit can pass around a boundary; that is enough against floods.
create function infernet.rate_limit(p_bucket text, p_limit int, p_window_secs int) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_now  timestamptz := infernet.clock();
  v_start timestamptz := to_timestamp(floor(extract(epoch from v_now) / p_window_secs) * p_window_secs);
  v_hits int;
begin
  insert into infernet.rate_limits as r (bucket, window_start, hits) values (p_bucket, v_start, 1)
  on conflict (bucket, window_start) do update set hits = r.hits + 1
  returning r.hits into v_hits;
  if v_hits > p_limit then
    perform infernet.refuse(429, 'rate_limited', 'Too many requests.',
      format('Try again in %s seconds.', ceil(extract(epoch from v_start - v_now) + p_window_secs)));
  end if;
end $$;

-- ---------------------------------------------------------------- who is calling

create function infernet.is_operator() returns boolean
language sql stable security definer set search_path = '' as $$
  select exists (select from public.operators o join public.users u on u.id = o.user_id
                 where o.user_id = (select auth.uid()) and u.status = 'active')
$$;

-- The calling person. A token without a row of ours is nobody.
create function infernet.calling_user() returns public.users
language plpgsql stable security definer set search_path = '' as $$
declare
  v_user public.users;
begin
  select * into v_user from public.users u where u.id = auth.uid();
  if not found then
    perform infernet.refuse(401, 'not_signed_in', 'This call needs a signed-in user.', 'Run: infernet login');
  elsif v_user.status <> 'active' then
    perform infernet.refuse(403, 'suspended', 'This account is suspended.', 'Ask the operator of this control plane.');
  end if;
  return v_user;
end $$;

create function infernet.require_user() returns uuid
language sql stable security definer set search_path = '' as $$
  select (infernet.calling_user()).id
$$;

create function infernet.require_operator() returns uuid
language plpgsql stable security definer set search_path = '' as $$
begin
  if not infernet.is_operator() then
    perform infernet.refuse(403, 'not_an_operator', 'Only an operator may do this.');
  end if;
  return auth.uid();
end $$;

-- Makes the user of a key, or returns the one there is. The key must not be a node's.
create function infernet.ensure_user(p_public_key text, p_name text default null) returns uuid
language plpgsql security definer set search_path = '' as $$
declare
  v_id uuid := gen_random_uuid();
  v_key infernet.keys;
begin
  insert into infernet.keys (public_key, subject, kind) values (p_public_key, v_id, 'user')
  on conflict (public_key) do nothing;
  if found then
    insert into public.users (id, public_key, name) values (v_id, p_public_key, p_name);
    perform infernet.open_accounts(v_id);
    perform infernet.welcome(v_id);
    return v_id;
  end if;
  select * into strict v_key from infernet.keys k where k.public_key = p_public_key;
  if v_key.kind <> 'user' then
    perform infernet.refuse(403, 'wrong_kind', 'This key belongs to a node.', 'Use the owner''s key for this.');
  end if;
  return v_key.subject;
end $$;

-- Makes the holder of a key an operator. For service_role: `infernet up` calls it at its start.
create function infernet.ensure_operator(p_public_key text, p_name text default null) returns uuid
language plpgsql security definer set search_path = '' as $$
declare
  v_user uuid := infernet.ensure_user(p_public_key, p_name);
begin
  insert into public.operators (user_id) values (v_user) on conflict do nothing;
  return v_user;
end $$;

-- ---------------------------------------------------------------- enrolment

-- Makes a one-time code with which a node joins this owner. The code itself is never stored.
create function infernet.make_enrolment(p_role text, p_expires_secs int) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_owner   uuid := infernet.require_user();
  v_code    text := 'enrol-' || replace(gen_random_uuid()::text, '-', '');
  v_expires timestamptz;
begin
  if p_role is null or p_role not in ('provider', 'client', 'aggregator') then
    perform infernet.refuse(422, 'bad_role', 'A node is a provider, a client or an aggregator.');
  end if;
  if p_expires_secs is null or p_expires_secs not between 1 and infernet.setting_int('enrolment_secs_max') then
    perform infernet.refuse(422, 'bad_expiry',
      format('A code lives from 1 to %s seconds.', infernet.setting_int('enrolment_secs_max')));
  end if;
  perform infernet.rate_limit('enrol:' || v_owner, 60, 60);
  v_expires := infernet.clock() + make_interval(secs => p_expires_secs);
  insert into infernet.enrolments (digest, owner_id, role, expires_at)
  values (sha256(convert_to(v_code, 'UTF8')), v_owner, p_role, v_expires);
  return jsonb_build_object('code', v_code, 'role', p_role, 'expires_at', v_expires);
end $$;

-- Uses a code for a key that is new here, and makes its node. Locks the code, so that it is used
-- once; the node's row and its key appear together or not at all.
create function infernet.enrol_node(p_public_key text, p_role text, p_code text, p_name text) returns infernet.keys
language plpgsql security definer set search_path = '' as $$
declare
  v_enrolment infernet.enrolments;
  v_key       infernet.keys;
  v_now       timestamptz := infernet.clock();
begin
  select * into v_enrolment from infernet.enrolments e
  where e.digest = sha256(convert_to(p_code, 'UTF8')) for update;
  if not found or v_enrolment.used_at is not null or v_enrolment.expires_at <= v_now then
    perform infernet.refuse(403, 'bad_enrolment',
      case when v_enrolment.used_at is not null then 'This enrolment code has been used.'
           when v_enrolment.digest is not null then 'This enrolment code has expired.'
           else 'This enrolment code is not known here.' end,
      'Ask the owner for a new one: infernet owner enrol');
  end if;
  if v_enrolment.role <> coalesce(p_role, v_enrolment.role) then
    perform infernet.refuse(403, 'bad_enrolment', format('This enrolment code is for a %s.', v_enrolment.role));
  end if;
  insert into infernet.keys (public_key, subject, kind)
  values (p_public_key, gen_random_uuid(), v_enrolment.role)
  on conflict (public_key) do nothing returning * into v_key;
  if v_key.subject is null then
    perform infernet.refuse(409, 'key_taken', 'This key was enrolled by somebody else at the same moment.');
  end if;
  perform infernet.make_node(v_key, v_enrolment.owner_id, p_name);
  update infernet.enrolments set used_at = v_now, used_by = v_key.subject where digest = v_enrolment.digest;
  return v_key;
end $$;

-- ---------------------------------------------------------------- login

-- The one call that the login function makes, as service_role, after the signature held: consumes
-- the event, finds or makes who it is, and says what to put into the token.
create function infernet.consume_login(
  p_event_id text, p_public_key text, p_event_time bigint, p_kind text, p_role text,
  p_enrolment text, p_name text, p_address text) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_now  timestamptz := infernet.clock();
  v_id   uuid;
  v_key  infernet.keys;
  v_user public.users;
  v_name text := nullif(left(btrim(regexp_replace(coalesce(p_name, ''), '[[:cntrl:]]', '', 'g')), 80), '');
begin
  if p_address is not null then
    perform infernet.rate_limit('login:' || p_address, infernet.setting_int('login_address_limit'), 60);
  end if;
  perform infernet.rate_limit('login:' || p_public_key, infernet.setting_int('login_limit'), 60);

  if abs(extract(epoch from v_now) - p_event_time) > 65 then
    perform infernet.refuse(401, 'clock_skew',
      format('The login is signed for a time %s seconds away from the server''s clock.',
             round(abs(extract(epoch from v_now) - p_event_time))), 'Set this machine''s clock.');
  end if;
  insert into infernet.login_events (event_id, used_at) values (p_event_id, v_now) on conflict do nothing;
  if not found then
    perform infernet.refuse(401, 'replayed', 'This login was used before.', 'Sign a new one.');
  end if;

  if p_kind = 'user' then
    v_id := infernet.ensure_user(p_public_key, v_name);
    select * into strict v_user from public.users u where u.id = v_id;
    if v_user.status <> 'active' then
      perform infernet.refuse(403, 'suspended', 'This account is suspended.', 'Ask the operator of this control plane.');
    end if;
    return jsonb_build_object('sub', v_user.id, 'kind', 'user', 'role', null);
  end if;

  select * into v_key from infernet.keys k where k.public_key = p_public_key;
  if not found then
    if p_enrolment is null then
      perform infernet.refuse(403, 'not_enrolled', 'This node is not enrolled here.',
        'Run: infernet init, with an enrolment code of the owner (infernet owner enrol).');
    end if;
    v_key := infernet.enrol_node(p_public_key, p_role, p_enrolment, v_name);
  elsif v_key.kind = 'user' then
    perform infernet.refuse(403, 'wrong_kind', 'This key belongs to a person.', 'A node needs a key of its own.');
  end if;
  if infernet.node_approval(v_key) = 'revoked' then
    perform infernet.refuse(403, 'suspended', 'This node was revoked.', 'Enrol it again with a new key.');
  end if;
  return jsonb_build_object('sub', v_key.subject, 'kind', 'node', 'role', v_key.kind);
end $$;
