-- What a node calls for itself: register, heartbeat, claim, leave, status. What it calls for one attempt follows in
-- its own file.

-- The share of the Realtime budget that one stream gets, messages a second: (0.6 x limit - wake-ups) / (2 x live
-- streams), because each message counts once sent and once delivered. The tick measures both.
create function infernet.stream_share(p_set jsonb, p_pulse infernet.pulse) returns numeric
language sql immutable parallel safe
return round(greatest(0, (0.6 * (p_set -> 'realtime_messages_per_second')::numeric - (p_pulse).wakeups_per_second)
                         / (2 * greatest(1, (p_pulse).live_streams))), 2);

create function infernet.stream_rate() returns numeric
language plpgsql stable security definer set search_path = '' as $$
begin
  return (select infernet.stream_share(r.value, p) from infernet.pulse p, infernet.settings_row r);
end $$;

-- An inventory as it is kept: the known keys alone, each checked, so that nothing of a stranger's making is
-- stored or shown. What it does not know it leaves out: a newer agent may say more.
create function infernet.clean_inventory(p_inventory jsonb) returns jsonb
language plpgsql immutable set search_path = '' as $$
declare
  v_gpus  jsonb := coalesce(p_inventory -> 'gpus', '[]');
  v_wrong text;
begin
  select min(k.key) into v_wrong
  from (values ('platform', 'string', '^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$'), ('region', 'string', '^[A-Za-z0-9][A-Za-z0-9 ._-]{0,39}$'),
               ('cpus', 'number', '^[0-9]{1,5}$'), ('ram_gb', 'number', '^[0-9]{1,6}$')) as k (key, type, grammar)
  where jsonb_typeof(p_inventory -> k.key) <> 'null'
    and (jsonb_typeof(p_inventory -> k.key) <> k.type or p_inventory ->> k.key !~ k.grammar);
  if v_wrong is null and (jsonb_typeof(v_gpus) <> 'array' or jsonb_array_length(v_gpus) > 64) then
    v_wrong := 'gpus';
  elsif v_wrong is null then
    select 'gpus' into v_wrong from jsonb_array_elements(v_gpus) g
    where jsonb_typeof(g) <> 'object'
       or coalesce(jsonb_typeof(g -> 'vendor'), '') <> 'string' or g ->> 'vendor' !~ '^[A-Za-z0-9][A-Za-z0-9 ._-]{0,39}$'
       or coalesce(jsonb_typeof(g -> 'model'), '') <> 'string' or g ->> 'model' !~ '^[A-Za-z0-9][A-Za-z0-9 ._()/+-]{0,79}$'
       or coalesce(jsonb_typeof(g -> 'vram_tier'), '') <> 'string' or g ->> 'vram_tier' !~ '^[0-9]{1,5}GB$'
    limit 1;
  end if;
  if v_wrong is not null then
    perform infernet.refuse(422, 'bad_inventory', format('The inventory''s %s is not what docs/protocol.md says.', v_wrong));
  end if;
  return jsonb_strip_nulls(jsonb_build_object(
    'platform', p_inventory -> 'platform', 'cpus', p_inventory -> 'cpus', 'ram_gb', p_inventory -> 'ram_gb',
    'region', p_inventory -> 'region',
    'gpus', (select coalesce(jsonb_agg(jsonb_build_object('vendor', g -> 'vendor', 'model', g -> 'model',
                                                          'vram_tier', g -> 'vram_tier') order by n), '[]')
             from jsonb_array_elements(v_gpus) with ordinality as e (g, n))));
end $$;

-- The labels of an inventory, which jobs may ask for: in order, each once.
create function infernet.clean_labels(p_labels jsonb) returns text[]
language plpgsql immutable set search_path = '' as $$
begin
  if p_labels is null or jsonb_typeof(p_labels) = 'null' then
    return '{}'::text[];
  elsif jsonb_typeof(p_labels) <> 'array' or jsonb_array_length(p_labels) > 32
        or exists (select from jsonb_array_elements(p_labels) l
                   where jsonb_typeof(l) <> 'string' or l #>> '{}' !~ '^[a-z0-9][a-z0-9._-]{0,39}$') then
    perform infernet.refuse(422, 'bad_inventory',
      'Labels are an array of at most 32 words of small letters, digits, dots, hyphens and underscores.');
  end if;
  return (select coalesce(array_agg(distinct l order by l), '{}') from jsonb_array_elements_text(p_labels) l);
end $$;

-- Registers what a node is and what it offers; p_online: and marks it online, as an agent does that is there
-- to work. An offer that is not named again is switched off. The inventory is coarse on purpose, and bounded.
create function infernet.register_node(p_inventory jsonb, p_offers jsonb, p_version text, p_online boolean) returns jsonb
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_bitmapscan = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
declare
  v_key    infernet.keys;
  v_now    timestamptz := infernet.clock();
  v_set    jsonb := infernet.settings_now();
  v_specs  jsonb;
  v_node   public.providers;
  v_offers uuid[] := '{}'::uuid[];
  v_offer  jsonb;
begin
  perform infernet.install_realtime();
  select * into v_key from infernet.keys k where k.subject = auth.uid() and k.kind <> 'user';
  if not found then
    perform infernet.refuse(403, 'not_a_node', 'This call needs the key of a node.', 'Run: infernet init');
  elsif jsonb_typeof(p_inventory) is distinct from 'object' or octet_length(p_inventory::text) > 8192 then
    perform infernet.refuse(413, 'inventory_too_large', 'The inventory must be a JSON object of at most 8 KB.');
  elsif coalesce(jsonb_typeof(p_offers), 'array') <> 'array' or jsonb_array_length(coalesce(p_offers, '[]')) > 200 then
    perform infernet.refuse(422, 'bad_offer', 'Offers must be an array of at most 200 objects.');
  end if;
  v_specs := infernet.clean_inventory(p_inventory);
  -- The order of locks: a heartbeat or a stop of this node waits here, or is waited for.
  perform from public.node_liveness l where l.node_id = v_key.subject for update;
  execute format('update public.%I set specs = $2, version = left($3, 40), region = $2 ->> ''region'', labels = $4, vram_gb = $5 where id = $1',
                 v_key.kind || 's')
  using v_key.subject, v_specs, p_version, infernet.clean_labels(p_inventory -> 'labels'),
        (select least(coalesce(sum(left(g ->> 'vram_tier', -2)::int), 0), 1000000)::int from jsonb_array_elements(v_specs -> 'gpus') g);

  if v_key.kind = 'provider' then
    v_node := infernet.require_provider();
    if coalesce(p_online, true) then
      perform infernet.beat(v_node.id, v_node.status, v_now + infernet.secs(v_set, 'lease_secs'), v_now, true, false, 0);
    end if;
    for v_offer in select * from jsonb_array_elements(coalesce(p_offers, '[]')) loop
      v_offers := v_offers || infernet.put_offer(v_node, v_offer, coalesce(p_online, true));
    end loop;
    update public.offers set enabled = false where provider_id = v_node.id and enabled and id <> all (v_offers);
    perform infernet.fill_node(v_node.id, null);
  elsif coalesce(p_online, true) then
    update public.node_liveness set last_seen = v_now,
      lease_until = v_now + make_interval(secs => (v_set ->> 'lease_secs')::double precision)
    where node_id = v_key.subject;
  end if;
  return infernet.node_json(v_key) || jsonb_build_object(
    'topic', 'node:' || v_key.subject,
    'heartbeat_secs', v_set -> 'heartbeat_secs', 'lease_secs', v_set -> 'lease_secs',
    'offers', infernet.offers_json(v_key.subject), 'server_time', v_now);
end $$;

-- A node as itself and its owner see it. stops: why it takes no new work, which is nothing when it does.
create function infernet.node_json(p_key infernet.keys) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_node jsonb;
begin
  execute format($sql$
    select jsonb_build_object('id', n.id, 'name', n.name, 'role', $2, 'status', n.status, 'approval', n.approval,
                              'last_seen', nullif(l.last_seen, 'epoch'), 'draining', l.draining, 'owner', n.owner_id,
                              'region', n.region, 'labels', n.labels, 'vram_gb', n.vram_gb)
    from public.%I n join public.node_liveness l on l.node_id = n.id where n.id = $1 $sql$, p_key.kind || 's')
  into v_node using p_key.subject, p_key.kind;
  return v_node || jsonb_build_object('stops', infernet.stops(p_key.subject, infernet.clock()));
end $$;

create function infernet.offers_json(p_node uuid) returns jsonb
language sql stable security definer set search_path = '' as $$
  select coalesce(jsonb_agg(jsonb_build_object('id', o.id, 'model', m.name, 'slots', o.slots, 'busy', infernet.busy(o.id),
           'price_input', infernet.usd(o.price_input), 'price_output', infernet.usd(o.price_output)) order by m.name), '[]')
  from public.offers o join public.models m on m.id = o.model_id
  where o.provider_id = p_node and o.enabled
$$;

-- Renews the lease of a node, and so of all that it runs, and answers its row. p_status is what the caller has
-- read. A node that others have stopped stays stopped, whatever it wishes.
create function infernet.beat(
  p_node uuid, p_status public.node_status, p_until timestamptz, p_now timestamptz, p_realtime boolean, p_draining boolean,
  p_running int)
returns public.node_liveness
language plpgsql security definer set search_path = '' as $$
declare
  v_status public.node_status := case when p_draining then 'draining' else 'online' end::public.node_status;
  v_live   public.node_liveness;
begin
  update public.node_liveness l set last_seen = p_now, lease_until = p_until, realtime = coalesce(p_realtime, false),
    wants_drain = coalesce(p_draining, false), draining = coalesce(p_draining, false) or l.stopped, running = p_running
  where l.node_id = p_node returning * into v_live;
  if v_live.stopped then
    v_live.stopped := infernet.refresh_stop(p_node, p_now, true);
    v_live.draining := v_live.wants_drain or v_live.stopped;
  elsif p_status <> v_status then
    update public.providers set status = v_status where id = p_node;
  end if;
  return v_live;
end $$;

-- Fills the free slots of a node from the queue; skips what others hold. Says whether anything came of it.
-- p_offers: of so many of its offers only, picked at random, or null for all. Where nothing waits, or nothing
-- that these offers serve, it only looks.
create function infernet.fill_node(p_node uuid, p_offers int) returns boolean
language plpgsql security definer set search_path = '' as $$
declare
  v_offer  record;
  v_filled boolean := false;
begin
  if not exists (select from infernet.queue q where q.ready_at is null) then
    return false;
  end if;
  for v_offer in
    select o.id, o.slots
    from (select f.id, f.slots, f.model_id from public.offers f
          where f.provider_id = p_node and f.enabled and f.approved order by random() limit p_offers) o
    where exists (select from infernet.queue q where q.model_id = o.model_id and q.ready_at is null) and (select count(*) from infernet.live_attempts a where a.offer_id = o.id) < o.slots
  loop
    v_filled := infernet.fill_offer(v_offer.id, v_offer.slots, false, infernet.settings_now()) is not null or v_filled;
  end loop;
  return v_filled;
end $$;

-- What a node must know: attempts offered to it, attempts to cancel, attempts it holds in vain; and whether
-- it has forgotten one that it started before p_before. Almost every heartbeat names what its node holds,
-- and is answered by the first statement.
create function infernet.node_work(
  p_node uuid, p_running uuid[], p_before timestamptz, out work jsonb, out forgotten boolean)
language plpgsql security definer set search_path = '' as $$
declare
  v_offered jsonb;
  v_cancel  jsonb;
  v_held    uuid[];
  v_news    boolean;
begin
  forgotten := false;
  select array_agg(l.attempt_id), bool_or(j.state <> 'running') into v_held, v_news
  from infernet.live_attempts l join public.jobs j on j.id = l.job_id where l.provider_id = p_node;
  v_held := coalesce(v_held, '{}');
  if v_held <@ p_running and p_running <@ v_held and v_news is not true then
    work := '{"attempts": [], "cancel": [], "lost": []}';
    return;
  end if;
  select jsonb_agg(jsonb_build_object('attempt', a.id, 'job', a.job_id, 'model', j.model_name, 'kind', j.kind,
                                      'offered_at', a.offered_at) order by a.offered_at) filter (where a.state = 'offered'),
         jsonb_agg(a.id) filter (where a.state = 'running' and j.state = 'cancelling'),
         coalesce(bool_or(a.state = 'running' and a.started_at <= p_before and a.id <> all (p_running)), false)
  into v_offered, v_cancel, forgotten
  from infernet.live_attempts l join public.job_attempts a on a.id = l.attempt_id join public.jobs j on j.id = l.job_id
  where l.provider_id = p_node;
  work := jsonb_build_object('attempts', coalesce(v_offered, '[]'), 'cancel', coalesce(v_cancel, '[]'),
    'lost', (select coalesce(jsonb_agg(r.id), '[]') from unnest(p_running) as r (id) where r.id <> all (v_held)));
end $$;

-- Gives up running attempts that their own node does not name: it has restarted, or has forgotten them.
create function infernet.lose_forgotten(p_node uuid, p_running uuid[], p_before timestamptz) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_attempt public.job_attempts;
begin
  for v_attempt in
    select a.* from infernet.live_attempts l join public.job_attempts a on a.id = l.attempt_id join public.jobs j on j.id = l.job_id
    where l.provider_id = p_node and l.attempt_id <> all (p_running)
      and a.state = 'running' and a.started_at <= p_before
    order by j.id for update of j skip locked
  loop
    select * into v_attempt from public.job_attempts a where a.id = v_attempt.id and a.state = 'running' for update;
    continue when not found;
    perform infernet.abandon_attempt(v_attempt, 'lost', 'node_restarted', 'The node no longer runs this attempt.', true, false);
  end loop;
end $$;

-- The pulse of a node, and its catch-up: renews all its leases, and returns what it missed. Ten thousand nodes
-- call it every few seconds: few statements, and nothing done where there is nothing to do.
create function infernet.heartbeat(p_running uuid[], p_realtime boolean, p_draining boolean) returns jsonb
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_bitmapscan = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
declare
  v_now     timestamptz := infernet.clock();
  v_running uuid[] := coalesce(p_running, '{}');
  v_node    uuid;
  v_allowed boolean;
  v_status  public.node_status;
  v_set     jsonb;
  v_ticked  timestamptz;
  v_rate    numeric;
  v_before  timestamptz;
  v_live    public.node_liveness;
  v_work    record;
  v_again   boolean;
begin
  select p.id, p.approval in ('pending', 'approved'), p.status, r.value, u.last_tick, infernet.stream_share(r.value, u)
  into v_node, v_allowed, v_status, v_set, v_ticked, v_rate
  from public.providers p, infernet.settings_row r, infernet.pulse u where p.id = auth.uid();
  if v_allowed is not true then
    perform infernet.require_provider();
  end if;
  v_live := infernet.beat(v_node, v_status, v_now + infernet.secs(v_set, 'lease_secs'), v_now, p_realtime, p_draining,
                          cardinality(v_running));
  v_before := v_now - infernet.secs(v_set, 'forgotten_secs');
  v_work := infernet.node_work(v_node, v_running, v_before);
  v_again := v_work.forgotten;
  if v_again then
    perform infernet.lose_forgotten(v_node, v_running, v_before);
  end if;
  -- From here on slots are given away, and whoever holds one waits for nothing more.
  -- The tick gives waiting jobs to free nodes; this is a small part of that, in case there is no timer.
  v_again := (not v_live.draining and infernet.fill_node(v_node, 2)) or v_again;
  if v_ticked < v_now - interval '3 seconds' then
    perform infernet.lazy_tick((select p.last_tick from infernet.pulse p));
    v_again := true;
  end if;
  if v_again then
    v_work := infernet.node_work(v_node, v_running, v_before);
  end if;
  return v_work.work || jsonb_build_object(
    'server_time', v_now, 'heartbeat_secs', v_set -> 'heartbeat_secs', 'stream_rate', v_rate,
    'commands', case when v_live.has_commands then infernet.open_commands(v_node, v_now, true) else '[]' end,
    'stops', case when v_live.stopped then infernet.stops(v_node, v_now) else '[]' end);
end $$;

-- What is offered to this node now. With p_restart the agent has just started: what it does not name
-- is lost at once, and goes elsewhere.
create function infernet.claim_attempts(p_running uuid[], p_restart boolean) returns jsonb
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_bitmapscan = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
declare
  v_node    public.providers := infernet.require_provider();
  v_now     timestamptz := infernet.clock();
  v_running uuid[] := coalesce(p_running, '{}');
begin
  if p_restart then
    perform infernet.lose_forgotten(v_node.id, v_running, 'infinity');
  end if;
  perform infernet.fill_node(v_node.id, null);
  return (select w.work from infernet.node_work(v_node.id, v_running, v_now) w) || jsonb_build_object(
    'server_time', v_now, 'stream_rate', infernet.stream_rate(),
    'commands', infernet.open_commands(v_node.id, v_now, false));
end $$;

-- Goes offline: what was offered or runs here is handed back, uncounted, and goes elsewhere.
create function infernet.leave() returns jsonb
language plpgsql security definer set search_path = ''
set plan_cache_mode = force_generic_plan set enable_bitmapscan = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
declare
  v_node    public.providers := infernet.require_provider();
  v_attempt public.job_attempts;
  v_count   int := 0;
begin
  update public.node_liveness set lease_until = infernet.clock(), wants_drain = false, draining = stopped, running = 0
  where node_id = v_node.id;
  update public.providers set status = 'offline' where id = v_node.id and status <> 'offline';
  for v_attempt in
    select a.* from infernet.live_attempts l join public.job_attempts a on a.id = l.attempt_id join public.jobs j on j.id = l.job_id
    where l.provider_id = v_node.id order by j.id for update of j
  loop
    select * into v_attempt from public.job_attempts a
    where a.id = v_attempt.id and a.state in ('offered', 'running') for update;
    continue when not found;
    perform infernet.abandon_attempt(v_attempt, 'lost', 'node_left', 'The node went offline.', false, false);
    v_count := v_count + 1;
  end loop;
  return jsonb_build_object('status', 'offline', 'handed_back', v_count);
end $$;

-- A node about itself: its row, why it takes no new work, what it runs, and what it earned.
create function infernet.node_status() returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_key infernet.keys;
  v_now timestamptz := infernet.clock();
begin
  select * into v_key from infernet.keys k where k.subject = auth.uid() and k.kind <> 'user';
  if not found then
    perform infernet.refuse(403, 'not_a_node', 'This call needs the key of a node.', 'Run: infernet init');
  end if;
  return (select jsonb_build_object(
    'node', infernet.node_json(v_key), 'offers', infernet.offers_json(v_key.subject),
    'running', (select count(*) from infernet.live_attempts l where l.provider_id = v_key.subject),
    'earnings', jsonb_build_object(
      'today', infernet.usd(coalesce(sum(a.earned) filter (where a.ended_at >= date_trunc('day', v_now at time zone 'UTC') at time zone 'UTC'), 0)),
      'days30', infernet.usd(coalesce(sum(a.earned) filter (where a.ended_at >= v_now - interval '30 days'), 0)),
      'total', infernet.usd(coalesce(sum(a.earned), 0)
        + coalesce((select e.amount from infernet.past_earnings e where e.provider_id = v_key.subject), 0))))
    from public.job_attempts a where a.provider_id = v_key.subject and a.state = 'completed');
end $$;

-- ---------------------------------------------------------------- owners and operators about nodes

-- A provider as its owner, and an operator, sees it.
create function infernet.owned_node_json(p_node public.providers, p_now timestamptz) returns jsonb
language sql volatile security definer set search_path = '' as $$
  select jsonb_build_object('id', (p_node).id, 'name', (p_node).name, 'status', (p_node).status, 'approval', (p_node).approval,
    'owner', (p_node).owner_id, 'region', (p_node).region, 'labels', (p_node).labels, 'vram_gb', (p_node).vram_gb,
    'version', (p_node).version, 'last_seen', nullif(l.last_seen, 'epoch'), 'running', l.running,
    'stops', infernet.stops((p_node).id, p_now),
    'maintenance', (select jsonb_build_object('from', s.maintenance_from, 'until', s.maintenance_until, 'note', s.maintenance_note)
                    from public.node_stops s where s.node_id = (p_node).id and s.maintenance_until > p_now))
  from public.node_liveness l where l.node_id = (p_node).id
$$;

-- The caller's own providers by name, an operator's everybody's; those of one status, or all.
create function infernet.list_nodes(p_status text, p_limit int) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_user uuid := infernet.require_user();
  v_all  boolean := infernet.is_operator();
  v_now  timestamptz := infernet.clock();
begin
  if p_limit is null or p_limit not between 1 and 1000 then
    perform infernet.refuse(422, 'bad_input', 'A list has 1 to 1000 nodes.');
  elsif p_status is not null and p_status not in ('offline', 'online', 'draining', 'paused') then
    perform infernet.refuse(422, 'bad_input', 'A node is offline, online, draining or paused.');
  end if;
  return (select jsonb_build_object('nodes', coalesce(jsonb_agg(infernet.owned_node_json(n.p, v_now) order by (n.p).name, (n.p).id), '[]'))
          from (select p from public.providers p
                where (v_all or p.owner_id = v_user) and (p_status is null or p.status = p_status::public.node_status)
                order by p.name, p.id limit p_limit) n);
end $$;

-- One provider, with its offers and its last commands. Names work as ids do, where they are one's only.
create function infernet.get_node(p_node text) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_user  uuid := infernet.require_user();
  v_nodes public.providers[];
begin
  select array_agg(p) into v_nodes
  from (select p from public.providers p
        where (p.owner_id = v_user or infernet.is_operator())
          and (p.name = p_node or p.id = case when infernet.is_uuid(lower(p_node)) then p_node::uuid end) limit 2) n (p);
  if v_nodes is null then
    perform infernet.refuse(404, 'unknown_node', format('There is no provider %s of yours.', coalesce(left(p_node, 80), 'null')), 'List them: infernet node ls');
  elsif cardinality(v_nodes) > 1 then
    perform infernet.refuse(409, 'ambiguous_node', format('Several providers are named %s.', left(p_node, 80)), 'Name it by its id: infernet node ls');
  end if;
  return infernet.owned_node_json(v_nodes[1], infernet.clock()) || jsonb_build_object(
    'offers', infernet.offers_json(v_nodes[1].id),
    'commands', (select coalesce(jsonb_agg(infernet.command_json(c) order by c.created_at desc, c.id), '[]')
                 from (select * from public.node_commands c where c.node_id = v_nodes[1].id order by c.created_at desc limit 20) c));
end $$;
