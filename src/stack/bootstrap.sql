-- Supabase's baseline on a plain PostgreSQL 15 to 18.
--
-- Run by the cluster's superuser (`supabase_admin`, the name that initdb was
-- given) on the one database that the gateway serves, at every start: each
-- statement may be run again on its own result. Passwords are not set here;
-- they are parameters and this file holds none.
--
-- What it makes, in order: roles, database settings, schemas, default
-- privileges, auth.*, realtime.*, the publication, extensions.
--
-- Left out, because nothing here may depend on it: vault, pg_net, pgmq, pg_cron,
-- storage, GoTrue's tables. Where this file must differ from Supabase because a
-- plain server has no supautils, a comment says so.

set client_min_messages = warning;

do $$
begin
  if current_setting('server_version_num')::int < 150000 then
    raise exception 'PostgreSQL 15 or newer is needed, this is %', current_setting('server_version');
  end if;
  if current_user = 'postgres' then
    raise exception 'The cluster''s superuser is called postgres'
      using hint = 'That name belongs to the role that owns the migrations. Make the cluster with initdb --username=supabase_admin.';
  end if;
end $$;

-- ------------------------------------------------------------------ roles

do $$
declare
  v_role text;
begin
  foreach v_role in array array[
    'anon', 'authenticated', 'service_role', 'authenticator', 'postgres',
    'supabase_auth_admin', 'supabase_realtime_admin'
  ] loop
    if not exists (select from pg_catalog.pg_roles where rolname = v_role) then
      execute pg_catalog.format('create role %I nologin', v_role);
    end if;
  end loop;
end $$;

alter role anon nologin noinherit;
alter role authenticated nologin noinherit;
alter role service_role nologin noinherit bypassrls;
alter role authenticator login noinherit;
alter role supabase_auth_admin nologin noinherit createrole;
alter role supabase_realtime_admin nologin noinherit;
-- Owns the migrations and everything in public. Not a superuser, as on Supabase,
-- so that a migration which would fail there fails here too.
alter role postgres login inherit nosuperuser createrole createdb replication bypassrls;

grant anon, authenticated, service_role to authenticator;
grant anon, authenticated, service_role, authenticator to postgres with admin option;
grant pg_monitor, pg_read_all_data, pg_signal_backend to postgres;

-- On Supabase an extension of the server (supautils) lets postgres create
-- policies on realtime.messages, which it does not own. Plain PostgreSQL knows
-- only the owner's right, so here postgres inherits from the owner. It could
-- therefore also alter that one table, which Supabase refuses; it still cannot
-- create anything in schema realtime, where the owner has no such right either.
do $$
begin
  if current_setting('server_version_num')::int >= 160000 then
    -- As text: version 15 cannot parse it.
    execute 'grant supabase_realtime_admin to postgres with inherit true, set false';
  else
    grant supabase_realtime_admin to postgres;
  end if;
end $$;

alter role anon set statement_timeout = '3s';
alter role authenticated set statement_timeout = '8s';
alter role authenticator set statement_timeout = '8s';
alter role authenticator set lock_timeout = '8s';
alter role postgres set statement_timeout = '2min';
alter role postgres set search_path = "$user", public, extensions;

-- --------------------------------------------------------------- database

do $$
begin
  -- Owning the database makes postgres the owner of public (pg_database_owner).
  execute pg_catalog.format('alter database %I owner to postgres', current_database());
  execute pg_catalog.format('alter database %I set timezone to %L', current_database(), 'UTC');
end $$;

set timezone to 'UTC';

-- ---------------------------------------------------------------- schemas

create schema if not exists extensions;
create schema if not exists auth;
create schema if not exists realtime;

grant usage on schema public, extensions, auth, realtime to anon, authenticated, service_role;
grant usage, create on schema public, extensions to postgres;
grant usage on schema auth, realtime to postgres;
grant usage, create on schema auth to supabase_auth_admin;
grant usage on schema realtime to supabase_realtime_admin;

-- ----------------------------------------------------- default privileges

-- As Supabase does it: what postgres (or the superuser) makes in public is open
-- to all three API roles, and functions are executable by everyone besides. This
-- is kept so that a migration which forgets its revoke is caught by our tests
-- and not first on a real project.
do $$
declare
  v_owner text;
begin
  foreach v_owner in array array['postgres', current_user::text] loop
    execute pg_catalog.format('alter default privileges for role %I in schema public grant all on tables to postgres, anon, authenticated, service_role', v_owner);
    execute pg_catalog.format('alter default privileges for role %I in schema public grant all on sequences to postgres, anon, authenticated, service_role', v_owner);
    execute pg_catalog.format('alter default privileges for role %I in schema public grant all on functions to postgres, anon, authenticated, service_role', v_owner);
  end loop;
end $$;

-- ------------------------------------------------------------------- auth

-- No `set search_path` on these four: it would keep the planner from inlining
-- them, and policies call them. They name nothing outside pg_catalog.

create or replace function auth.uid() returns uuid
language sql stable
as $$
  select coalesce(
    nullif(current_setting('request.jwt.claim.sub', true), ''),
    nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub'
  )::uuid
$$;

create or replace function auth.role() returns text
language sql stable
as $$
  select coalesce(
    nullif(current_setting('request.jwt.claim.role', true), ''),
    nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'role'
  )::text
$$;

create or replace function auth.email() returns text
language sql stable
as $$
  select coalesce(
    nullif(current_setting('request.jwt.claim.email', true), ''),
    nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'email'
  )::text
$$;

create or replace function auth.jwt() returns jsonb
language sql stable
as $$
  select coalesce(
    nullif(current_setting('request.jwt.claim', true), ''),
    nullif(current_setting('request.jwt.claims', true), '')
  )::jsonb
$$;

alter function auth.uid() owner to supabase_auth_admin;
alter function auth.role() owner to supabase_auth_admin;
alter function auth.email() owner to supabase_auth_admin;
alter function auth.jwt() owner to supabase_auth_admin;

-- --------------------------------------------------------------- realtime

create table if not exists realtime.messages (
  topic text not null,
  extension text not null,
  payload jsonb,
  event text,
  private boolean default false,
  updated_at timestamp without time zone not null default now(),
  inserted_at timestamp without time zone not null default now(),
  id uuid not null default gen_random_uuid(),
  binary_payload bytea,
  constraint messages_pkey primary key (id, inserted_at),
  constraint messages_payload_exclusive check (payload is null or binary_payload is null)
) partition by range (inserted_at);

alter table realtime.messages owner to supabase_realtime_admin;
alter table realtime.messages enable row level security;
grant select, insert, update on realtime.messages to anon, authenticated, service_role;
grant all on realtime.messages to postgres;

-- Real Realtime learns of messages by decoding the WAL. The gateway reads them
-- from here, and knows by two columns of its own, which Realtime does not have,
-- which ones it has not read yet: `txid` is the transaction that a snapshot shows
-- or does not show, `seq` the order of the rows of one snapshot. A trigger with
-- NOTIFY would be simpler, but it takes one lock of the whole cluster from before
-- the commit is flushed until after it, so that all who send commit one by one.
create sequence if not exists realtime.messages_seq;
alter sequence realtime.messages_seq owner to supabase_realtime_admin;
-- Whoever may insert needs it for the default.
grant usage, select on sequence realtime.messages_seq to public;

drop trigger if exists notify_message on realtime.messages;
drop function if exists realtime.notify_message();
alter table realtime.messages
  add column if not exists txid xid8 not null default pg_current_xact_id(),
  add column if not exists seq bigint not null default 0;
-- Apart, so that rows of an older release are not written anew.
alter table realtime.messages alter column seq set default nextval('realtime.messages_seq');
create index if not exists messages_txid_index on realtime.messages (txid);
-- Rows of a dump bring numbers that the transactions of this cluster still have
-- before them, and would be taken for news then.
update realtime.messages set txid = pg_current_xact_id() where txid > pg_current_xact_id();

-- Replay reads the newest private broadcasts of a topic.
create index if not exists messages_inserted_at_topic_index
  on realtime.messages (inserted_at desc, topic)
  where extension = 'broadcast' and private is true;

-- The topic that a policy on realtime.messages decides about. Set by the
-- gateway for a join and by send for an insert.
create or replace function realtime.topic() returns text
language sql stable
as $$
  select nullif(current_setting('realtime.topic', true), '')::text
$$;

-- Broadcasts a JSON message to a topic when the caller's transaction commits.
-- Runs as the caller, so the insert policies of its role apply. Never fails the
-- caller: whatever goes wrong loses the message and leaves a warning.
create or replace function realtime.send(payload jsonb, event text, topic text, private boolean default true)
returns void
language plpgsql
set search_path = ''
as $$
declare
  v_id uuid := gen_random_uuid();
  v_payload jsonb := payload;
begin
  if not v_payload ? 'id' then
    v_payload := jsonb_set(v_payload, '{id}', to_jsonb(v_id));
  end if;
  perform set_config('realtime.topic', topic, true);
  insert into realtime.messages (id, payload, event, topic, private, extension)
  values (v_id, v_payload, event, topic, private, 'broadcast');
exception
  when others then
    raise warning 'WarnSendingBroadcastMessage: %', sqlerrm;
end;
$$;

-- As send, for bytes that are no JSON.
create or replace function realtime.send_binary(payload bytea, event text, topic text, private boolean default true)
returns void
language plpgsql
set search_path = ''
as $$
begin
  perform set_config('realtime.topic', topic, true);
  insert into realtime.messages (id, binary_payload, event, topic, private, extension)
  values (gen_random_uuid(), payload, event, topic, private, 'broadcast');
exception
  when others then
    raise warning 'WarnSendingBroadcastMessage: %', sqlerrm;
end;
$$;

-- Broadcasts the change of one row, always privately. For a row trigger:
--   perform realtime.broadcast_changes('topic', tg_op, tg_op, tg_table_name, tg_table_schema, new, old);
-- Unlike send, it raises when it is called wrongly or the row cannot be shown.
create or replace function realtime.broadcast_changes(
  topic_name text, event_name text, operation text, table_name text, table_schema text,
  new record, old record, level text default 'ROW')
returns void
language plpgsql
set search_path = ''
as $$
begin
  if level = 'STATEMENT' then
    raise exception 'function can only be triggered for each row, not for each statement';
  end if;
  if operation is null or operation not in ('INSERT', 'UPDATE', 'DELETE') then
    raise exception 'Unexpected operation type: %', operation;
  end if;
  perform realtime.send(
    jsonb_build_object(
      'old_record', old,
      'record', new,
      'operation', operation,
      'table', table_name,
      'schema', table_schema),
    event_name,
    topic_name);
exception
  when others then
    raise exception 'Failed to process the row: %', sqlerrm;
end;
$$;

-- Keeps one partition of realtime.messages a day, from yesterday to three days
-- ahead, and drops those whose last message is older than 72 hours. Called at
-- start and hourly by the gateway; safe to call at any time by any number of
-- callers. Security definer, because only the superuser creates in this schema.
-- A partition is added or dropped under an exclusive lock on the parent; a caller
-- that cannot have it within two seconds leaves the work to the next call.
-- Returns the number of partitions that were made or dropped.
create or replace function realtime.keep_partitions() returns integer
language plpgsql
security definer
set search_path = ''
set lock_timeout = '2s'
set client_min_messages = warning
as $$
declare
  v_today date := (now() at time zone 'utc')::date;
  v_oldest date := (now() at time zone 'utc' - interval '72 hours')::date;
  v_day date;
  v_name text;
  v_changed integer := 0;
begin
  if not pg_try_advisory_xact_lock(hashtextextended('realtime.keep_partitions', 0)) then
    return 0;
  end if;

  for v_day in select generate_series(v_today - 1, v_today + 3, interval '1 day')::date loop
    v_name := 'messages_' || to_char(v_day, 'YYYY_MM_DD');
    continue when to_regclass('realtime.' || v_name) is not null;
    execute format(
      'create table realtime.%I partition of realtime.messages for values from (%L) to (%L)',
      v_name, v_day::timestamp, (v_day + 1)::timestamp);
    execute format('alter table realtime.%I owner to supabase_realtime_admin', v_name);
    v_changed := v_changed + 1;
  end loop;

  for v_name in
    select c.relname
    from pg_inherits i
    join pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'realtime.messages'::regclass
      and c.relname ~ '^messages_\d{4}_\d{2}_\d{2}$'
      and to_date(right(c.relname, 10), 'YYYY_MM_DD') < v_oldest
  loop
    execute format('drop table realtime.%I', v_name);
    v_changed := v_changed + 1;
  end loop;

  return v_changed;
exception
  when lock_not_available then
    return 0;
end;
$$;

revoke execute on function realtime.keep_partitions() from public;
grant execute on function realtime.keep_partitions() to postgres, service_role;

select realtime.keep_partitions();

-- ------------------------------------------------------------ publication

-- Empty, as on a new project: a migration may add tables to it. The embedded
-- gateway does not read it.
do $$
begin
  if not exists (select from pg_catalog.pg_publication where pubname = 'supabase_realtime') then
    -- The warning would be about wal_level, which the embedded server leaves low.
    perform set_config('client_min_messages', 'error', true);
    perform set_config('log_min_messages', 'error', true);
    create publication supabase_realtime;
    perform set_config('client_min_messages', 'warning', true);
    perform set_config('log_min_messages', 'warning', true);
  end if;
  alter publication supabase_realtime owner to postgres;
end $$;

-- ------------------------------------------------------------- extensions

do $$
declare
  v_extension text;
begin
  foreach v_extension in array array['pgcrypto', 'uuid-ossp'] loop
    if exists (select from pg_catalog.pg_available_extensions where name = v_extension) then
      execute format('create extension if not exists %I with schema extensions', v_extension);
    end if;
  end loop;
end $$;

reset client_min_messages;
