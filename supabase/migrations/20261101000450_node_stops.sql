-- Why a provider takes no new work although it is there: its owner or an operator drained it, its
-- maintenance window is open, or it is paused because its engine failed again and again. What it runs, it
-- finishes. All of it ends in one boolean, node_liveness.draining, which is all that matching looks at.
--
-- Who changes a stop locks the node's row of node_liveness first: the order of locks. Faults are only
-- noted where other locks are held, and the tick makes pauses of them.

-- One row a provider that is stopped, will be, or was paused lately. changes_at: when time alone
-- changes what follows from it.
create table public.node_stops (
  node_id           uuid primary key references public.providers (id),
  owner_id          uuid not null references public.users (id),
  drained_at        timestamptz,
  drained_by        text check (drained_by in ('owner', 'operator')),
  drain_reason      text check (length(drain_reason) <= 200),
  maintenance_from  timestamptz,
  maintenance_until timestamptz,
  maintenance_by    text check (maintenance_by in ('owner', 'operator')),
  maintenance_note  text check (length(maintenance_note) <= 200),
  paused_at         timestamptz,
  paused_until      timestamptz,
  pause_reason      text,
  pauses            int not null default 0,
  changes_at        timestamptz,
  check ((drained_at is null) = (drained_by is null)),
  check (maintenance_until > maintenance_from),
  check ((maintenance_from is null) = (maintenance_until is null))
);
alter table public.node_stops enable row level security;
create index node_stops_owner on public.node_stops (owner_id);
create index node_stops_changes on public.node_stops (changes_at) where changes_at is not null;

-- Faults of nodes since their last success, one row each, only ever inserted where work ends; a row
-- without a code is a success. The tick folds them.
create table infernet.node_faults (
  id      bigint generated always as identity primary key,
  node_id uuid not null,
  code    text,
  at      timestamptz not null
);
alter table infernet.node_faults enable row level security;
create index node_faults_node on infernet.node_faults (node_id);

-- Everything that keeps a node from new work now, each with its reason, its end, and the way back.
create function infernet.stops(p_node uuid, p_now timestamptz) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_stop  public.node_stops;
  v_stops jsonb := '[]'::jsonb;
begin
  select * into v_stop from public.node_stops s where s.node_id = p_node;
  if v_stop.paused_until > p_now then
    v_stops := v_stops || jsonb_build_object('why', 'paused', 'by', 'market', 'reason', v_stop.pause_reason,
      'since', v_stop.paused_at, 'until', v_stop.paused_until,
      'hint', format('It comes back by itself then. Mend its engine, and bring it back at once with: infernet node resume %s', p_node));
  end if;
  if v_stop.drained_at is not null then
    v_stops := v_stops || jsonb_build_object('why', 'drained', 'by', v_stop.drained_by, 'reason', v_stop.drain_reason,
      'since', v_stop.drained_at, 'until', null,
      'hint', format('%s brings it back with: infernet node resume %s',
                     case v_stop.drained_by when 'owner' then 'Its owner' else 'An operator' end, p_node));
  end if;
  if v_stop.maintenance_from <= p_now and v_stop.maintenance_until > p_now then
    v_stops := v_stops || jsonb_build_object('why', 'maintenance', 'by', v_stop.maintenance_by,
      'reason', v_stop.maintenance_note, 'since', v_stop.maintenance_from, 'until', v_stop.maintenance_until,
      'hint', format('It comes back by itself then, or at once with: infernet node resume %s', p_node));
  end if;
  return v_stops;
end $$;

-- Works out anew whether a node is stopped, and what its status is. The caller holds its row of
-- node_liveness. p_online: the node itself is calling, so it is not offline.
create function infernet.refresh_stop(p_node uuid, p_now timestamptz, p_online boolean) returns boolean
language plpgsql security definer set search_path = '' as $$
declare
  v_stop    public.node_stops;
  v_paused  boolean;
  v_stopped boolean;
  v_status  public.node_status;
begin
  update public.node_stops s set
    paused_at = case when s.paused_until > p_now then s.paused_at end,
    pause_reason = case when s.paused_until > p_now then s.pause_reason end,
    paused_until = case when s.paused_until > p_now then s.paused_until end,
    maintenance_by = case when s.maintenance_until > p_now then s.maintenance_by end,
    maintenance_note = case when s.maintenance_until > p_now then s.maintenance_note end,
    maintenance_from = case when s.maintenance_until > p_now then s.maintenance_from end,
    maintenance_until = case when s.maintenance_until > p_now then s.maintenance_until end,
    -- least() leaves out what is null.
    changes_at = least(case when s.paused_until > p_now then s.paused_until end,
                       case when s.maintenance_until > p_now then
                         case when s.maintenance_from > p_now then s.maintenance_from else s.maintenance_until end end)
  where s.node_id = p_node returning * into v_stop;
  v_paused := v_stop.paused_until is not null;
  v_stopped := v_paused or v_stop.drained_at is not null or coalesce(v_stop.maintenance_from <= p_now, false);
  if not v_stopped and v_stop.pauses = 0 and v_stop.maintenance_from is null then
    delete from public.node_stops s where s.node_id = p_node;
  end if;
  update public.node_liveness l set stopped = v_stopped, draining = l.wants_drain or v_stopped
  where l.node_id = p_node and (l.stopped, l.draining) is distinct from (v_stopped, l.wants_drain or v_stopped);
  select case when v_paused then 'paused' when v_stopped or l.wants_drain then 'draining' else 'online' end::public.node_status
  into v_status
  from public.node_liveness l where l.node_id = p_node;
  update public.providers p set status = v_status
  where p.id = p_node and p.status <> v_status and (p_online or p.status <> 'offline');
  return v_stopped;
end $$;

-- The provider that a person may stop and command: one's own, or any for an operator. Locks its row of
-- node_liveness, so that a heartbeat and a drain follow one another.
create function infernet.owned_node(p_node uuid) returns public.providers
language plpgsql security definer set search_path = '' as $$
declare
  v_user uuid := infernet.require_user();
  v_node public.providers;
begin
  perform from public.node_liveness l where l.node_id = p_node
    and (l.owner_id = v_user or infernet.is_operator()) for update;
  if found then
    select * into v_node from public.providers p where p.id = p_node;
  end if;
  if v_node.id is null then
    perform infernet.refuse(404, 'unknown_node', format('There is no provider %s of yours.', p_node), 'List them: infernet node ls');
  end if;
  return v_node;
end $$;

-- As whom the caller acts on this node: an operator's word stands above the owner's.
create function infernet.acting_as() returns text
language sql stable security definer set search_path = '' as $$
  select case when infernet.is_operator() then 'operator' else 'owner' end
$$;

-- A node as these calls answer it.
create function infernet.stop_json(p_node uuid, p_now timestamptz) returns jsonb
language sql volatile security definer set search_path = '' as $$
  select jsonb_build_object('id', p.id, 'name', p.name, 'status', p.status, 'running', l.running,
    'stops', infernet.stops(p.id, p_now),
    'maintenance', (select jsonb_build_object('from', s.maintenance_from, 'until', s.maintenance_until, 'note', s.maintenance_note)
                    from public.node_stops s where s.node_id = p.id and s.maintenance_until > p_now))
  from public.providers p join public.node_liveness l on l.node_id = p.id where p.id = p_node
$$;

-- A short text of a person, on one line; null when nothing is left of it.
create function infernet.one_line(p_text text, p_length int) returns text
language sql immutable parallel safe set search_path = '' as $$
  select nullif(left(btrim(regexp_replace(p_text, '[[:cntrl:]]+', ' ', 'g')), p_length), '')
$$;

-- Takes a node out of the market until it is resumed. Safe to repeat; an operator's drain replaces the
-- owner's, never the other way round.
create function infernet.drain_node(p_node uuid, p_reason text) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_node public.providers := infernet.owned_node(p_node);
  v_by   text := infernet.acting_as();
  v_now  timestamptz := infernet.clock();
begin
  insert into public.node_stops as s (node_id, owner_id, drained_at, drained_by, drain_reason)
  values (v_node.id, v_node.owner_id, v_now, v_by, infernet.one_line(p_reason, 200))
  on conflict (node_id) do update set
    drained_at = coalesce(s.drained_at, excluded.drained_at), drained_by = excluded.drained_by, drain_reason = excluded.drain_reason
  where s.drained_by is distinct from 'operator' or excluded.drained_by = 'operator';
  perform infernet.refresh_stop(v_node.id, v_now, false);
  return infernet.stop_json(v_node.id, v_now);
end $$;

-- Brings a node back: ends its drain, its pause, and a maintenance window that is open. What an operator
-- has stopped, only an operator resumes.
create function infernet.resume_node(p_node uuid) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_node public.providers := infernet.owned_node(p_node);
  v_now  timestamptz := infernet.clock();
  v_stop public.node_stops;
begin
  select * into v_stop from public.node_stops s where s.node_id = v_node.id;
  if infernet.acting_as() <> 'operator' and (v_stop.drained_by = 'operator'
     or (v_stop.maintenance_by = 'operator' and v_stop.maintenance_from <= v_now and v_stop.maintenance_until > v_now)) then
    perform infernet.refuse(403, 'stopped_by_operator', format('An operator has stopped node %s%s.', v_node.name,
        coalesce(': ' || case v_stop.drained_by when 'operator' then v_stop.drain_reason else v_stop.maintenance_note end, '')),
      'Ask the operator of this control plane to resume it.');
  end if;
  update public.node_stops s set drained_at = null, drained_by = null, drain_reason = null,
    paused_at = null, paused_until = null, pause_reason = null, pauses = 0,
    maintenance_until = case when s.maintenance_from > v_now then s.maintenance_until end,
    maintenance_by = case when s.maintenance_from > v_now then s.maintenance_by end,
    maintenance_note = case when s.maintenance_from > v_now then s.maintenance_note end,
    maintenance_from = case when s.maintenance_from > v_now then s.maintenance_from end
  where s.node_id = v_node.id;
  delete from infernet.node_faults f where f.node_id = v_node.id;
  perform infernet.refresh_stop(v_node.id, v_now, false);
  return infernet.stop_json(v_node.id, v_now);
end $$;

-- Plans a window in which a node takes no new work; it begins and ends by itself. Without a beginning it
-- begins now; without an end the window that there is is taken back.
create function infernet.set_maintenance(p_node uuid, p_from timestamptz, p_until timestamptz, p_note text) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_node public.providers := infernet.owned_node(p_node);
  v_by   text := infernet.acting_as();
  v_now  timestamptz := infernet.clock();
  v_days int := infernet.setting_int('maintenance_days_max');
begin
  if p_until is null and p_from is not null then
    perform infernet.refuse(422, 'bad_window', 'A maintenance window needs an end.', 'To take a node out until you say so: infernet node drain');
  elsif p_until is not null and (not isfinite(p_until) or p_until <= greatest(coalesce(p_from, v_now), v_now)) then
    perform infernet.refuse(422, 'bad_window', 'A maintenance window must end after it begins, and after now.');
  elsif p_until > v_now + make_interval(days => v_days) then
    perform infernet.refuse(422, 'bad_window', format('A maintenance window ends within %s days.', v_days));
  elsif v_by <> 'operator' and exists (select from public.node_stops s where s.node_id = v_node.id
                                       and s.maintenance_by = 'operator' and s.maintenance_until > v_now) then
    perform infernet.refuse(403, 'stopped_by_operator', format('An operator has planned the maintenance of node %s.', v_node.name),
      'Ask the operator of this control plane to change it.');
  end if;
  insert into public.node_stops (node_id, owner_id, maintenance_from, maintenance_until, maintenance_by, maintenance_note)
  values (v_node.id, v_node.owner_id, case when p_until is not null then greatest(coalesce(p_from, v_now), v_now) end, p_until,
          case when p_until is not null then v_by end, case when p_until is not null then infernet.one_line(p_note, 200) end)
  on conflict (node_id) do update set
    maintenance_from = excluded.maintenance_from, maintenance_until = excluded.maintenance_until,
    maintenance_by = excluded.maintenance_by, maintenance_note = excluded.maintenance_note;
  perform infernet.refresh_stop(v_node.id, v_now, false);
  return infernet.stop_json(v_node.id, v_now);
end $$;

-- Makes pauses of the faults that were noted: so many in a row, or the first one after a pause. Each pause
-- without a success since the last is twice as long. Skips nodes whose row somebody holds.
create function infernet.fold_faults(p_now timestamptz, p_limit int) returns int
language plpgsql security definer set search_path = '' as $$
declare
  v_set    jsonb := infernet.settings_now();
  v_least  int := (v_set ->> 'fault_limit')::int;
  v_node   record;
  v_faults bigint;
  v_code   text;
  v_paused int := 0;
begin
  delete from infernet.node_faults f where f.id in (
    select o.id from infernet.node_faults o
    where o.at <= p_now - make_interval(secs => (v_set ->> 'fault_window_secs')::double precision) for update skip locked);
  for v_node in
    select f.node_id, max(f.id) filter (where f.code is null) as success
    from infernet.node_faults f left join public.node_stops s on s.node_id = f.node_id
    group by f.node_id, s.pauses
    having bool_or(f.code is null) or count(*) >= case when s.pauses > 0 then 1 else v_least end
    order by f.node_id limit p_limit
  loop
    perform from public.node_liveness l where l.node_id = v_node.node_id for update skip locked;
    continue when not found;
    if v_node.success is not null then
      delete from infernet.node_faults f where f.node_id = v_node.node_id and f.id <= v_node.success;
      update public.node_stops s set pauses = 0 where s.node_id = v_node.node_id and s.pauses > 0;
      perform infernet.refresh_stop(v_node.node_id, p_now, false);
    end if;
    select count(*), (array_agg(f.code order by f.id desc))[1] into v_faults, v_code
    from infernet.node_faults f where f.node_id = v_node.node_id and f.code is not null;
    if v_least > 0 and v_faults >= coalesce(
         (select case when s.pauses > 0 then 1 end from public.node_stops s where s.node_id = v_node.node_id), v_least) then
      perform infernet.pause_node(v_node.node_id, v_faults, v_code, v_set, p_now);
      v_paused := v_paused + 1;
    end if;
  end loop;
  return v_paused;
end $$;

-- Pauses a node, whose row of node_liveness is locked by the caller. What still fails while it is paused
-- makes the pause no longer.
create function infernet.pause_node(p_node uuid, p_faults bigint, p_code text, p_set jsonb, p_now timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_first numeric := (p_set ->> 'pause_secs')::numeric;
  v_most  numeric := (p_set ->> 'pause_secs_max')::numeric;
begin
  insert into public.node_stops as s (node_id, owner_id, paused_at, paused_until, pause_reason, pauses)
  select p.id, p.owner_id, p_now, p_now + make_interval(secs => least(v_first, v_most)::double precision),
         format('Its engine failed %s times in a row, the last time with %s.', p_faults, p_code), 1
  from public.providers p where p.id = p_node
  on conflict (node_id) do update set
    paused_at = p_now,
    paused_until = p_now + make_interval(secs => least(v_first * 2 ^ least(s.pauses, 30), v_most)::double precision),
    pause_reason = case when s.pauses > 0 then format('Its engine failed again after a pause, with %s.', p_code)
                        else excluded.pause_reason end,
    pauses = s.pauses + 1
  where s.paused_until is null or s.paused_until <= p_now;
  delete from infernet.node_faults f where f.node_id = p_node;
  perform infernet.refresh_stop(p_node, p_now, false);
end $$;

-- Begins and ends what time alone begins and ends. Skips nodes whose row somebody holds.
create function infernet.change_stops(p_now timestamptz, p_limit int) returns int
language plpgsql security definer set search_path = '' as $$
declare
  v_node  uuid;
  v_count int := 0;
begin
  for v_node in
    select l.node_id from public.node_stops s join public.node_liveness l on l.node_id = s.node_id
    where s.changes_at <= p_now order by s.changes_at limit p_limit for update of l skip locked
  loop
    perform infernet.refresh_stop(v_node, p_now, false);
    v_count := v_count + 1;
  end loop;
  return v_count;
end $$;
