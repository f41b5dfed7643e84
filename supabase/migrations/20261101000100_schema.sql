-- The private schema `infernet`, and the few words that all of it uses.
--
-- How the database is laid out
--   public      tables (row level security, SELECT at most) and thin wrappers: the API
--   infernet    the logic, security definer, and tables that no client reads
--
-- How to read on, by file: settings, identity, nodes, their stops and commands, market, jobs, ledger, payments, realtime,
-- pricing, assignment, consumer calls, explanation, node calls, attempt calls, the tick, retention, operator calls, health, reporting, access.
--
-- One order of locks holds everywhere, so that no two calls can wait for each other:
--   node_liveness, batches, jobs (several: by id), job_attempts, ledger_accounts (by id), offer_load.
-- Whoever holds a row of offer_load waits for nothing more; what must take a second one skips
-- locked rows instead.

create schema if not exists infernet;
revoke all on schema infernet from public;
grant usage on schema infernet to anon, authenticated, service_role;

-- Supabase grants everything new in public to its API roles, and PostgreSQL grants EXECUTE to
-- PUBLIC. Neither may happen between two migrations; access.sql then grants by name.
alter default privileges for role postgres revoke execute on functions from public;
alter default privileges for role postgres in schema public
  revoke all on tables from anon, authenticated, service_role;
alter default privileges for role postgres in schema public
  revoke all on sequences from anon, authenticated, service_role;
alter default privileges for role postgres in schema public
  revoke all on functions from anon, authenticated, service_role;

-- The server's time. Tests set infernet.clock; what arrives through the API (session user
-- authenticator) cannot.
create function infernet.clock() returns timestamptz
language plpgsql volatile set search_path = '' as $$
begin
  if session_user <> 'authenticator' and current_setting('infernet.clock', true) <> '' then
    return current_setting('infernet.clock', true)::timestamptz;
  end if;
  return clock_timestamp();
end $$;

-- Refuses a call: HTTP status, a stable word for programs, a sentence for people, the next step.
create function infernet.refuse(p_status int, p_word text, p_message text, p_hint text default null)
returns void
language plpgsql set search_path = '' as $$
begin
  raise exception using
    errcode = 'PT' || p_status, message = p_message, detail = p_word, hint = coalesce(p_hint, '');
end $$;

-- The small functions below have no search_path of their own, so that they are inlined into what calls them;
-- they name nothing but built-in functions.

-- A uuid that follows from another one and a purpose: the id of the transfer that a job or an attempt may
-- cause once, however often it is tried. It begins as the other one does, so that rows which are made
-- together lie together in their index, too.
create function infernet.derived_id(p_id uuid, p_purpose text) returns uuid
language sql immutable strict parallel safe
return (left(p_id::text, 13) || substr(md5(p_id::text || ':' || p_purpose), 13))::uuid;

-- A new id, which begins with the time (UUID version 7).
create function infernet.new_id() returns uuid
language sql volatile parallel safe
return (lpad(to_hex((extract(epoch from clock_timestamp()) * 1000)::bigint), 12, '0') || '7'
        || substr(replace(gen_random_uuid()::text, '-', ''), 14))::uuid;

-- Money as it crosses the wire: text, so that no float ever holds it.
create function infernet.usd(p_amount numeric) returns text
language sql immutable parallel safe
return round(p_amount, 12)::text;
