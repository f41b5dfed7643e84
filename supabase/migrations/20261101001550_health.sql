-- How the control plane itself is: what waits, what the database carries along, whether the tick runs. For
-- operators and service_role; `infernet doctor` reads it. It only looks, and only at what is cheap to read.

-- One finding: how bad (info, warning, error), what, and what to do about it.
create function infernet.finding(p_level text, p_what text, p_hint text) returns jsonb
language sql immutable set search_path = '' as $$
  select jsonb_build_object('level', p_level, 'what', p_what, 'hint', p_hint)
$$;

-- Seconds as people say them.
create function infernet.span(p_secs numeric) returns text
language sql immutable set search_path = '' as $$
  select case when p_secs < 120 then round(p_secs) || ' s' when p_secs < 7200 then round(p_secs / 60) || ' min'
              when p_secs < 172800 then round(p_secs / 3600) || ' h' else round(p_secs / 86400) || ' days' end
$$;

-- What waits: how many jobs, since when, and the models for which most wait.
create function infernet.queue_health(p_now timestamptz, out report jsonb, out findings jsonb)
language plpgsql stable security definer set search_path = '' as $$
begin
  with line as (
    select j.model_name, j.model_id, count(*) as waiting, min(j.created_at) as oldest
    from infernet.queue q join public.jobs j on j.id = q.job_id where q.ready_at is null group by j.model_name, j.model_id
  ), model as (
    select l.*, round(extract(epoch from p_now - l.oldest)) as secs,
           (select count(*) from public.offers o join public.node_liveness n on n.node_id = o.provider_id
            where o.model_id = l.model_id and o.enabled and o.approved and n.lease_until > p_now and not n.draining) as online
    from line l order by l.waiting desc, l.model_name limit 5
  )
  select jsonb_build_object('waiting', (select coalesce(sum(l.waiting), 0) from line l),
           'oldest_secs', (select round(extract(epoch from p_now - min(l.oldest))) from line l),
           'models', coalesce(jsonb_agg(jsonb_build_object('model', m.model_name, 'waiting', m.waiting, 'oldest_secs', m.secs,
                                                           'online', m.online) order by m.waiting desc, m.model_name), '[]')),
         coalesce(jsonb_agg(case
           when m.online = 0 then infernet.finding('warning',
             format('Jobs that wait for %s, which no node online serves: %s, the oldest for %s.', m.model_name, m.waiting, infernet.span(m.secs)),
             'See why its nodes are away: infernet node ls')
           else infernet.finding('warning',
             format('Jobs that wait for %s: %s, the oldest for %s.', m.model_name, m.waiting, infernet.span(m.secs)),
             'Its nodes are busy or above the jobs'' caps. More nodes, or more slots, make it shorter.')
           end order by m.secs desc) filter (where m.secs >= 60), '[]')
  into report, findings from model m;
end $$;

-- The nodes by status.
create function infernet.fleet_health(out report jsonb, out findings jsonb)
language plpgsql stable security definer set search_path = '' as $$
begin
  select jsonb_build_object('total', count(*),
           'online', count(*) filter (where p.status = 'online'), 'draining', count(*) filter (where p.status = 'draining'),
           'paused', count(*) filter (where p.status = 'paused'), 'offline', count(*) filter (where p.status = 'offline'),
           'pending', count(*) filter (where p.approval = 'pending'))
  into report from public.providers p where p.approval in ('approved', 'pending');
  findings := '[]';
  if (report ->> 'paused')::int > 0 then
    findings := findings || infernet.finding('warning',
      format('Nodes that are paused, because their engines failed again and again: %s of %s.', report ->> 'paused', report ->> 'total'),
      'See which and why: infernet node ls');
  end if;
  if (report ->> 'pending')::int > 0 then
    findings := findings || infernet.finding('info', format('Nodes that wait for approval: %s.', report ->> 'pending'),
      'Approve one: infernet operator approve NODE');
  end if;
end $$;

-- Whether the tick runs.
create function infernet.tick_health(p_now timestamptz, out report jsonb, out findings jsonb)
language plpgsql stable security definer set search_path = '' as $$
declare
  v_pulse infernet.pulse;
  v_lag   numeric;
begin
  select * into strict v_pulse from infernet.pulse;
  v_lag := round(extract(epoch from p_now - nullif(v_pulse.last_tick, 'epoch')), 3);
  report := jsonb_build_object('last_tick', nullif(v_pulse.last_tick, 'epoch'), 'lag_secs', v_lag,
                               'leases_spared_until', case when v_pulse.grace_until > p_now then v_pulse.grace_until end);
  findings := '[]';
  if v_lag is null or v_lag > 5 then
    findings := findings || infernet.finding(case when v_lag <= 60 then 'warning' else 'error' end,
      coalesce('The tick last ran ' || infernet.span(v_lag) || ' ago; it should run each second.', 'The tick has never run.'),
      'Nothing else notices lost nodes and deadlines. It is run by infernet up, or by pg_cron (1.5 or newer) on Supabase.');
  end if;
  if v_pulse.grace_until > p_now then
    findings := findings || infernet.finding('warning', 'Leases are spared, because of an outage of the control plane a moment ago.',
      format('It ends by itself at %s.', to_char(v_pulse.grace_until at time zone 'UTC', 'HH24:MI:SS "UTC"')));
  end if;
end $$;

-- The tables that change most: what is dead in them, and when they were last cleaned.
create function infernet.table_health(out report jsonb, out findings jsonb)
language plpgsql stable security definer set search_path = '' as $$
declare
  v_hot text[] := array['public.node_liveness', 'public.jobs', 'public.job_attempts', 'public.job_contents', 'public.job_events',
    'public.ledger_accounts', 'public.ledger_holds', 'public.ledger_entries', 'public.ledger_transfers',
    'infernet.offer_load', 'infernet.pulse', 'infernet.queue', 'infernet.live_attempts', 'infernet.node_faults',
    'infernet.outcomes', 'realtime.messages'];
begin
  select coalesce(jsonb_agg(jsonb_build_object('table', t.name, 'bytes', t.bytes, 'live', t.live, 'dead', t.dead,
                                               'last_vacuum', t.vacuumed) order by t.bytes desc), '[]'),
         coalesce(jsonb_agg(infernet.finding('warning',
           format('Table %s has %s dead rows to %s live ones%s.', t.name, t.dead, t.live,
                  coalesce(', and was last cleaned ' || to_char(t.vacuumed at time zone 'UTC', 'YYYY-MM-DD HH24:MI "UTC"'), ', and was never cleaned')),
           'Autovacuum is behind, or a snapshot holds it back; see the other findings.') order by t.dead desc)
           filter (where t.dead > 10000 and t.dead > 5 * t.live), '[]')
  into report, findings
  from (select format('%s.%s', s.schemaname, s.relname) as name, pg_catalog.pg_total_relation_size(s.relid) as bytes,
               s.n_live_tup as live, s.n_dead_tup as dead, greatest(s.last_vacuum, s.last_autovacuum) as vacuumed
        from pg_catalog.pg_stat_all_tables s where format('%s.%s', s.schemaname, s.relname) = any (v_hot)) t;
end $$;

-- What keeps the database from forgetting dead rows: old snapshots, slots, prepared transactions, an
-- autovacuum that is off.
create function infernet.vacuum_health(out report jsonb, out findings jsonb)
language plpgsql volatile security definer set search_path = '' as $$
declare
  -- Whose sessions a role without this sees: its own.
  v_sees    boolean := pg_catalog.pg_has_role(current_user, 'pg_read_all_stats', 'usage');
  v_holder  record;
  v_slots   jsonb;
  v_stale   jsonb;
  v_two     jsonb;
  v_auto    jsonb;
begin
  findings := '[]';
  select a.pid, a.usename, nullif(a.application_name, '') as application, a.state,
         round(extract(epoch from clock_timestamp() - a.xact_start)) as secs, pg_catalog.age(a.backend_xmin) as xids
  into v_holder
  from pg_catalog.pg_stat_activity a
  where a.xact_start is not null and a.pid <> pg_catalog.pg_backend_pid() and a.backend_type <> 'autovacuum worker'
    and (a.backend_xmin is not null or a.backend_xid is not null) and a.datname = current_database()
  order by a.xact_start limit 1;
  if v_holder.secs >= 60 then
    findings := findings || infernet.finding(case when v_holder.secs >= 600 then 'error' else 'warning' end,
      format('A transaction of %s%s has been open for %s (%s, process %s); no dead row after its snapshot can be cleaned.',
             v_holder.usename, coalesce(' (' || v_holder.application || ')', ''), infernet.span(v_holder.secs), v_holder.state, v_holder.pid),
      format('End it: select pg_terminate_backend(%s)', v_holder.pid));
  end if;
  if not v_sees then
    findings := findings || infernet.finding('info', 'Sessions of other roles cannot be seen, so that an old snapshot of theirs goes unnoticed.',
      format('Grant it as a superuser: grant pg_read_all_stats to %I', current_user));
  end if;

  select coalesce(jsonb_agg(jsonb_build_object('slot', s.slot_name, 'active', s.active,
           'xids', greatest(pg_catalog.age(s.xmin), pg_catalog.age(s.catalog_xmin))) order by s.slot_name), '[]'),
         coalesce(jsonb_agg(infernet.finding('warning',
           format('Replication slot %s is not used, and holds dead rows of the last %s transactions.', s.slot_name,
                  greatest(pg_catalog.age(s.xmin), pg_catalog.age(s.catalog_xmin))),
           format('If nothing will use it again: select pg_drop_replication_slot(%L)', s.slot_name)))
           filter (where not s.active and (s.xmin is not null or s.catalog_xmin is not null)), '[]')
  into v_slots, v_stale from pg_catalog.pg_replication_slots s;
  findings := findings || v_stale;

  select coalesce(jsonb_agg(jsonb_build_object('name', x.gid, 'since', x.prepared)), '[]'),
         coalesce(jsonb_agg(infernet.finding('error',
           format('Transaction %s was prepared at %s, and neither committed nor rolled back.', x.gid,
                  to_char(x.prepared at time zone 'UTC', 'YYYY-MM-DD HH24:MI "UTC"')),
           format('End it: rollback prepared %L', x.gid))) filter (where x.prepared < clock_timestamp() - interval '1 minute'), '[]')
  into v_two, v_stale from pg_catalog.pg_prepared_xacts x where x.database = current_database();
  findings := findings || v_stale;

  v_auto := jsonb_build_object('on', current_setting('autovacuum')::boolean and current_setting('track_counts')::boolean,
    'naptime_secs', extract(epoch from current_setting('autovacuum_naptime')::interval)::int,
    'workers', current_setting('autovacuum_max_workers')::int,
    'cost_limit', case when current_setting('autovacuum_vacuum_cost_limit')::int > 0
                       then current_setting('autovacuum_vacuum_cost_limit')::int else current_setting('vacuum_cost_limit')::int end,
    'cost_delay', current_setting('autovacuum_vacuum_cost_delay'));
  if not (v_auto ->> 'on')::boolean then
    findings := findings || infernet.finding('error', 'Autovacuum is off: dead rows are never cleaned, and tables grow without end.',
      'Set autovacuum and track_counts to on, and reload PostgreSQL.');
  elsif (v_auto ->> 'naptime_secs')::int > 60 then
    findings := findings || infernet.finding('warning',
      format('Autovacuum looks at this database every %s only.', infernet.span((v_auto ->> 'naptime_secs')::numeric)),
      'Set autovacuum_naptime to 15s, and reload PostgreSQL.');
  end if;
  report := jsonb_build_object(
    'oldest_transaction', case when v_holder.pid is not null then jsonb_build_object('pid', v_holder.pid, 'role', v_holder.usename,
      'application', v_holder.application, 'state', v_holder.state, 'secs', v_holder.secs, 'xids', v_holder.xids) end,
    'sees_all_sessions', v_sees, 'replication_slots', v_slots, 'prepared', v_two, 'autovacuum', v_auto);
end $$;

-- Whether finished work leaves in time, and whether the histories of what ended last are whole.
create function infernet.retention_health(p_now timestamptz, out report jsonb, out findings jsonb)
language plpgsql stable security definer set search_path = ''
set enable_seqscan = off as $$
declare
  v_days   int := infernet.setting_int('content_days');
  v_oldest timestamptz := (select min(j.ended_at) from public.jobs j where j.ended_at is not null and j.forgotten_at is null);
  v_over   numeric := greatest(0, round(extract(epoch from p_now - v_oldest - make_interval(days => v_days))));
  v_broken jsonb;
begin
  select coalesce(jsonb_agg(jsonb_build_object('job', b.job_id, 'at', b.broken_at)), '[]') into v_broken
  from infernet.broken_histories(array(select j.id from public.jobs j where j.ended_at is not null and j.forgotten_at is null
                                       order by j.ended_at desc limit 100)) b;
  report := jsonb_build_object('oldest_content', v_oldest, 'overdue_secs', coalesce(v_over, 0), 'broken_histories', v_broken);
  findings := '[]';
  if v_over > 86400 then
    findings := findings || infernet.finding('warning',
      format('The contents of ended jobs are kept %s longer than the %s days of content_days.', infernet.span(v_over), v_days),
      'The tick deletes retention_jobs of them a second; raise that setting, and see the database''s log for retention failed.');
  end if;
  if v_broken <> '[]' then
    findings := findings || infernet.finding('error',
      format('The history of a job was changed after it was written: job %s, event %s. Of the last 100 that ended: %s.',
             v_broken #>> '{0,job}', v_broken #>> '{0,at}', jsonb_array_length(v_broken)),
      'See the whole of it with the call check_histories, and who may write job_events.');
  end if;
end $$;

-- All of it, and how bad it is at worst.
create function infernet.health() returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_now      timestamptz := infernet.clock();
  v_queue    record := infernet.queue_health(v_now);
  v_fleet    record := infernet.fleet_health();
  v_tick     record := infernet.tick_health(v_now);
  v_tables   record := infernet.table_health();
  v_vacuum   record := infernet.vacuum_health();
  v_kept     record := infernet.retention_health(v_now);
  v_findings jsonb := v_tick.findings || v_kept.findings || v_queue.findings || v_fleet.findings || v_vacuum.findings || v_tables.findings;
begin
  if not infernet.install_realtime() then
    v_findings := v_findings || infernet.finding('warning', 'There is no Realtime: nodes hear of work by their heartbeats alone.',
      'Start the Realtime server of this Supabase; its table is noticed by itself.');
  end if;
  return jsonb_build_object(
    'server_time', v_now,
    'level', case when v_findings @> '[{"level":"error"}]' then 'error' when v_findings @> '[{"level":"warning"}]' then 'warning' else 'ok' end,
    'findings', v_findings, 'queue', v_queue.report, 'nodes', v_fleet.report, 'tick', v_tick.report, 'retention', v_kept.report,
    'database', v_vacuum.report || jsonb_build_object('bytes', pg_catalog.pg_database_size(current_database()), 'tables', v_tables.report));
end $$;

create function infernet.operator_health() returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
begin
  perform infernet.require_operator();
  return infernet.health();
end $$;
