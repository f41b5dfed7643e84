-- Commands of an owner or operator to a node: issued, handed over by the node's next heartbeat or claim
-- (a message is the hint), acknowledged and finished by the node alone, or expired, or taken back. The
-- node may refuse what its own owner did not allow on the machine; it then says so.

create table public.node_commands (
  id              uuid primary key default gen_random_uuid(),
  node_id         uuid not null references public.providers (id),
  command         text not null check (command in ('pull_model', 'remove_model', 'drain', 'resume', 'restart_engine')),
  args            jsonb not null default '{}',
  state           text not null default 'pending'
                  check (state in ('pending', 'acknowledged', 'done', 'failed', 'expired', 'cancelled')),
  issued_by       uuid not null references public.users (id),
  result          jsonb,
  error           text,
  created_at      timestamptz not null default now(),
  acknowledged_at timestamptz,
  expires_at      timestamptz not null,
  ended_at        timestamptz
);
alter table public.node_commands enable row level security;
create index node_commands_node on public.node_commands (node_id, created_at);
create index node_commands_issuer on public.node_commands (issued_by);
create index node_commands_open on public.node_commands (expires_at) where state in ('pending', 'acknowledged');

create function infernet.command_json(p_command public.node_commands) returns jsonb
language sql immutable set search_path = '' as $$
  select jsonb_build_object('id', p_command.id, 'node', p_command.node_id, 'command', p_command.command,
    'args', p_command.args, 'state', p_command.state, 'result', p_command.result, 'error', p_command.error,
    'created_at', p_command.created_at, 'acknowledged_at', p_command.acknowledged_at,
    'expires_at', p_command.expires_at, 'ended_at', p_command.ended_at)
$$;

-- The arguments of a command as they are kept; refuses what the command does not take.
create function infernet.check_command(p_command text, p_args jsonb) returns jsonb
language plpgsql immutable set search_path = '' as $$
declare
  v_args  jsonb := coalesce(p_args, '{}');
  v_takes text[];
  v_wrong text;
begin
  case p_command
    when 'pull_model' then v_takes := array['model', 'digest'];
    when 'remove_model', 'restart_engine' then v_takes := array['model'];
    when 'drain', 'resume' then v_takes := '{}'::text[];
    else
      perform infernet.refuse(422, 'bad_command', format('%s is no command.', coalesce(quote_literal(left(p_command, 40)), 'Nothing')),
        'Commands: pull_model, remove_model, drain, resume, restart_engine.');
  end case;
  if jsonb_typeof(v_args) <> 'object' then
    perform infernet.refuse(422, 'bad_command', 'The arguments of a command are a JSON object.');
  end if;
  select min(k) into v_wrong from jsonb_object_keys(v_args) k where k <> all (v_takes);
  if v_wrong is not null then
    perform infernet.refuse(422, 'bad_command', format('%s takes no argument %s.', p_command, left(v_wrong, 40)));
  elsif p_command in ('pull_model', 'remove_model') and not v_args ? 'model' then
    perform infernet.refuse(422, 'bad_command', format('%s needs the name of a model.', p_command));
  elsif v_args ? 'model' and (jsonb_typeof(v_args -> 'model') <> 'string' or not infernet.is_model_name(v_args ->> 'model')) then
    perform infernet.refuse(422, 'bad_command', format('%s is no name of a model.', left(v_args ->> 'model', 100)));
  elsif v_args ? 'digest' and (jsonb_typeof(v_args -> 'digest') <> 'string' or v_args ->> 'digest' !~ '^[0-9a-f]{64}$') then
    perform infernet.refuse(422, 'bad_command', 'The digest is no sha256 in hex.');
  end if;
  return v_args;
end $$;

create function infernet.is_model_name(p_name text) returns boolean
language sql immutable parallel safe set search_path = '' as $$
  select coalesce(p_name ~ '^[A-Za-z0-9][A-Za-z0-9._:/-]{0,99}$', false)
$$;

-- Gives a node a command. The same command that still waits is not issued twice, so a repeat is safe.
create function infernet.command_node(p_node uuid, p_command text, p_args jsonb, p_expires_secs int) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_node    public.providers := infernet.owned_node(p_node);
  v_args    jsonb := infernet.check_command(p_command, p_args);
  v_now     timestamptz := infernet.clock();
  v_set     jsonb := infernet.settings_now();
  v_secs    int := coalesce(p_expires_secs, (v_set ->> 'command_secs')::int);
  v_open    bigint;
  v_command public.node_commands;
begin
  if v_secs not between 1 and (v_set ->> 'command_secs_max')::int then
    perform infernet.refuse(422, 'bad_expiry', format('A command stands for 1 to %s seconds.', v_set ->> 'command_secs_max'));
  end if;
  select * into v_command from public.node_commands c
  where c.node_id = v_node.id and c.state in ('pending', 'acknowledged') and c.expires_at > v_now
    and c.command = p_command and c.args = v_args
  order by c.created_at limit 1;
  if found then
    return infernet.command_json(v_command) || '{"created": false}';
  end if;
  select count(*) into v_open from public.node_commands c
  where c.node_id = v_node.id and c.state in ('pending', 'acknowledged') and c.expires_at > v_now;
  if v_open >= (v_set ->> 'commands_pending_max')::int then
    perform infernet.refuse(409, 'too_many_commands', format('%s commands wait for node %s already.', v_open, v_node.name),
      'Wait for them, or take some back.');
  end if;
  insert into public.node_commands (node_id, command, args, issued_by, created_at, expires_at)
  values (v_node.id, p_command, v_args, auth.uid(), v_now, v_now + make_interval(secs => v_secs))
  returning * into v_command;
  update public.node_liveness set has_commands = true where node_id = v_node.id;
  perform infernet.send('node:' || v_node.id, 'command', jsonb_build_object('command', v_command.id));
  return infernet.command_json(v_command) || '{"created": true}';
end $$;

-- Takes a command back that has not ended. Safe to repeat.
create function infernet.cancel_command(p_id uuid) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_command public.node_commands;
begin
  perform infernet.require_user();
  select * into v_command from public.node_commands c where c.id = p_id
    and (infernet.is_operator() or exists (select from public.providers p where p.id = c.node_id and p.owner_id = auth.uid()));
  if not found then
    perform infernet.refuse(404, 'unknown_command', format('There is no command %s of yours.', p_id), 'List them: infernet node show');
  end if;
  update public.node_commands c set state = 'cancelled', ended_at = infernet.clock()
  where c.id = p_id and c.state in ('pending', 'acknowledged') returning * into v_command;
  if not found then
    select * into strict v_command from public.node_commands c where c.id = p_id;
  end if;
  return infernet.command_json(v_command);
end $$;

-- What waits for a node, oldest first. p_forget: where nothing waits any more, heartbeats need not look
-- again; only who holds the node's row of node_liveness may know that.
create function infernet.open_commands(p_node uuid, p_now timestamptz, p_forget boolean) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_commands jsonb;
begin
  select jsonb_agg(infernet.command_json(c) - 'result' - 'error' - 'ended_at' order by c.created_at, c.id) into v_commands
  from public.node_commands c where c.node_id = p_node and c.state in ('pending', 'acknowledged') and c.expires_at > p_now;
  if v_commands is null and p_forget then
    update public.node_liveness set has_commands = false where node_id = p_node;
  end if;
  return coalesce(v_commands, '[]');
end $$;

-- The command of the calling node, locked.
create function infernet.own_command(p_id uuid) returns public.node_commands
language plpgsql security definer set search_path = '' as $$
declare
  v_node    public.providers := infernet.require_provider();
  v_command public.node_commands;
begin
  select * into v_command from public.node_commands c where c.id = p_id and c.node_id = v_node.id for update;
  if not found then
    perform infernet.refuse(404, 'unknown_command', format('Command %s is not one for this node.', p_id));
  end if;
  return v_command;
end $$;

-- The node has read a command and goes about it. A command that has ended is answered with accepted
-- false: do nothing. Safe to repeat, also by an agent that was restarted in between.
create function infernet.acknowledge_command(p_id uuid) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_command public.node_commands := infernet.own_command(p_id);
  v_now     timestamptz := infernet.clock();
begin
  if v_command.state = 'pending' and v_command.expires_at > v_now then
    update public.node_commands c set state = 'acknowledged', acknowledged_at = v_now where c.id = p_id returning * into v_command;
  end if;
  return infernet.command_json(v_command)
      || jsonb_build_object('accepted', v_command.state = 'acknowledged' and v_command.expires_at > v_now);
end $$;

-- The node says what came of a command. What comes after its end changes nothing.
create function infernet.finish_command(p_id uuid, p_ok boolean, p_result jsonb, p_error text) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_command public.node_commands := infernet.own_command(p_id);
  v_open    boolean := v_command.state in ('pending', 'acknowledged');
begin
  if p_ok is null then
    perform infernet.refuse(422, 'bad_input', 'Say whether the command succeeded.');
  elsif octet_length(p_result::text) > 4096 then
    perform infernet.refuse(413, 'result_too_large', 'The result of a command has at most 4 KB.');
  end if;
  if v_open then
    update public.node_commands c set state = case when p_ok then 'done' else 'failed' end, ended_at = infernet.clock(),
      result = p_result, error = case when not p_ok then coalesce(infernet.one_line(p_error, 1000), 'The node gave no reason.') end
    where c.id = p_id returning * into v_command;
    perform infernet.send('owner:' || p.owner_id, 'command',
                          jsonb_build_object('command', v_command.id, 'node', v_command.node_id, 'state', v_command.state))
    from public.providers p where p.id = v_command.node_id;
  end if;
  return infernet.command_json(v_command) || jsonb_build_object('accepted', v_open);
end $$;

-- Ends commands that nobody finished in time.
create function infernet.expire_commands(p_now timestamptz, p_limit int) returns int
language plpgsql security definer set search_path = '' as $$
declare
  v_count int;
begin
  update public.node_commands set state = 'expired', ended_at = p_now, error = 'The node did not finish it in time.'
  where id in (select c.id from public.node_commands c
               where c.state in ('pending', 'acknowledged') and c.expires_at <= p_now
               order by c.expires_at limit p_limit for update skip locked);
  get diagnostics v_count = row_count;
  return v_count;
end $$;

-- What time alone causes at nodes: one step of the tick.
create function infernet.tick_nodes(p_now timestamptz, p_limit int) returns jsonb
language sql security definer set search_path = '' as $$
  select jsonb_build_object('paused', infernet.fold_faults(p_now, p_limit), 'stops', infernet.change_stops(p_now, p_limit),
                            'commands', infernet.expire_commands(p_now, p_limit))
$$;
