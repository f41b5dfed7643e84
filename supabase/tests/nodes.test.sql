-- Nodes that take no new work: drained, in maintenance, paused; and the commands that they are given.
begin;
\ir actors.psql
select no_plan();
-- Work goes to whoever has most room, so that who gets any shows who takes some.
update public.settings set value = '{"load": 1}' where key = 'weights';

select tests.set_clock('2026-11-01 12:00:00+00');
select tests.operator('olga'), tests.user('alice'), tests.user('dave'), tests.credit('alice', 100);
select tests.node('n1', 'carol'), tests.node('n2', 'dave');
select infernet.tick();
select tests.online('n1', 4), tests.online('n2', 4);

create function tests.attempt(p_job uuid) returns uuid
language sql as $$ select id from public.job_attempts where job_id = p_job order by number desc limit 1 $$;
create function tests.runner(p_job uuid) returns text
language sql as $$ select provider_name from public.job_attempts where job_id = p_job order by number desc limit 1 $$;
create function tests.status(p_node text) returns text
language sql as $$ select status::text from public.providers where id = tests.subject(p_node) $$;
create function tests.beat(p_node text, p_draining boolean default false) returns jsonb
language sql as $$ select tests.as(p_node, format('public.heartbeat(array(select id from public.job_attempts
  where provider_id = %L and state = ''running''), true, %L)', tests.subject(p_node), p_draining)) $$;
create function tests.call_on(p_actor text, p_call text, p_node text, p_rest text default '') returns jsonb
language sql as $$ select tests.as(p_actor, format('public.%I(%L%s)', p_call, tests.subject(p_node), p_rest)) $$;
-- Who gets the next job, which is cancelled again.
create function tests.next_runner() returns text
language plpgsql as $$
declare v_job uuid := gen_random_uuid(); v_node text;
begin
  perform tests.submit('alice', v_job);
  v_node := tests.runner(v_job);
  perform tests.as('alice', format('public.cancel_job(%L)', v_job));
  return v_node;
end $$;
-- How many of ten jobs each node gets.
create function tests.runners() returns text
language sql as $$ select coalesce(string_agg(distinct r, ' ' order by r), 'none') from (select tests.next_runner() as r from generate_series(1, 10)) j $$;
create function tests.state_of(p_sql text) returns text
language plpgsql as $$
begin
  execute p_sql;
  return 'done';
exception when others then
  return sqlstate || ' ' || sqlerrm;
end $$;

select is(tests.runners(), 'n1 n2', 'both nodes get work');

-- ------------------------------------------------------------ drain and resume
select tests.submit('alice', '00000000-0000-7000-8000-000000000001') is not null as submitted;
select tests.start(tests.runner('00000000-0000-7000-8000-000000000001'), tests.attempt('00000000-0000-7000-8000-000000000001'), '11111111-1111-4111-8111-111111111111') is not null as started;
create temp table first as select tests.runner('00000000-0000-7000-8000-000000000001') as node,
  case tests.runner('00000000-0000-7000-8000-000000000001') when 'n1' then 'carol' else 'dave' end as owner,
  case tests.runner('00000000-0000-7000-8000-000000000001') when 'n1' then 'n2' else 'n1' end as other;

create temp table drained as select tests.call_on(owner, 'drain_node', node, ', E''new\ndisk''') as answer from first;
select is(answer ->> 'status', 'draining', 'an owner drains a node') from drained;
select is(answer #>> '{stops,0,why}', 'drained', 'which says why') from drained;
select is(answer #>> '{stops,0,reason}', 'new disk', 'in the owner''s words, on one line') from drained;
select is(answer #>> '{stops,0,by}', 'owner', 'and by whom') from drained;
select matches(answer #>> '{stops,0,hint}', 'infernet node resume', 'and how it comes back') from drained;
select is(tests.runners(), (select other from first), 'a drained node gets no work');
select is((select tests.beat(node) #>> '{stops,0,why}' from first), 'drained', 'its heartbeat hears of it');
select is((select tests.status(node) from first), 'draining', 'and does not end it');
select is(tests.runners(), (select other from first), 'so it still gets no work');
select is((select tests.complete(node, tests.attempt('00000000-0000-7000-8000-000000000001'), '11111111-1111-4111-8111-111111111111') from first) ->> 'accepted', 'true',
  'what it runs, it finishes');
select is((select tests.as(node, 'public.node_status()') #>> '{node,stops,0,why}' from first), 'drained', 'its own status says it too');
select is((select tests.call_on(owner, 'drain_node', node) #>> '{stops,0,since}' from first)::timestamptz, infernet.clock(), 'a repeat changes nothing of the time');
select tests.as((select node from first), 'public.leave()');
select is((select tests.status(node) from first), 'offline', 'a drained node may leave');
select tests.online((select node from first), 4);
select is((select tests.status(node) from first), 'draining', 'and is drained when it is back');
select is((select tests.call_on(owner, 'resume_node', node) -> 'stops' from first), '[]', 'the owner resumes it');
select is((select tests.status(node) from first), 'online', 'so it is online');
select is(tests.runners(), 'n1 n2', 'and gets work again');
select is((select count(*) from public.node_stops), 0::bigint, 'nothing is left of the stop');

select tests.beat('n1', true);
select is(tests.runners(), 'n2', 'a node that wants no work gets none');
select is(tests.call_on('carol', 'resume_node', 'n1') ->> 'status', 'draining', 'its own wish is not its owner''s to lift');
select tests.beat('n1');
select is(tests.runners(), 'n1 n2', 'until it takes it back');

-- ------------------------------------------------------------ who may
select is(tests.call_on('olga', 'drain_node', 'n1', ', ''audit''') #>> '{stops,0,by}', 'operator', 'an operator drains any node');
select matches(tests.state_of($$select tests.call_on('carol', 'resume_node', 'n1')$$), 'PT403 An operator has stopped node n1: audit', 'its owner cannot resume it');
select is(tests.call_on('carol', 'drain_node', 'n1', ', ''mine''') #>> '{stops,0,reason}', 'audit', 'nor make that drain its own');
select is(tests.call_on('olga', 'resume_node', 'n1') -> 'stops', '[]', 'an operator resumes it');
select matches(tests.state_of(format($$select tests.call_on('dave', %L, 'n1'%s)$$, c.name, c.rest)), 'PT404', 'another owner cannot call ' || c.name)
from (values ('drain_node', ''), ('resume_node', ''), ('set_maintenance', ', '', null, now()'''), ('command_node', ', '', ''''resume''''''')) as c (name, rest);
select matches(tests.state_of($$select tests.call_on('n1', 'drain_node', 'n1')$$), 'PT401', 'nor can a node itself');
select is(tests.call_on('carol', 'drain_node', 'n1', ', repeat(''x'', 1000)') #>> '{stops,0,reason}', repeat('x', 200), 'a reason is cut to a line''s length');
select is(tests.call_on('carol', 'resume_node', 'n1') ->> 'status', 'online', 'and the node comes back');

-- ------------------------------------------------------------ maintenance
select matches(tests.state_of($$select tests.call_on('carol', 'set_maintenance', 'n1', ', ''2026-11-01 13:00Z'', null')$$), 'PT422', 'a window needs an end');
select matches(tests.state_of($$select tests.call_on('carol', 'set_maintenance', 'n1', ', ''2026-11-01 14:00Z'', ''2026-11-01 13:00Z''')$$), 'PT422', 'after its beginning');
select matches(tests.state_of($$select tests.call_on('carol', 'set_maintenance', 'n1', ', null, ''2026-11-01 11:00Z''')$$), 'PT422', 'and not in the past');
select matches(tests.state_of($$select tests.call_on('carol', 'set_maintenance', 'n1', ', null, ''infinity''')$$), 'PT422', 'nor for ever');
select matches(tests.state_of($$select tests.call_on('carol', 'set_maintenance', 'n1', ', null, ''2027-11-01''')$$), 'PT422', 'nor for a year');
create temp table planned as select tests.call_on('carol', 'set_maintenance', 'n1', ', ''2026-11-01 12:01Z'', ''2026-11-01 12:02Z'', ''new fans''') as answer;
select is(answer -> 'stops', '[]', 'a planned window stops nothing yet') from planned;
select is(answer #>> '{maintenance,note}', 'new fans', 'and is shown') from planned;
select is(tests.runners(), 'n1 n2', 'the node gets work until then');
select tests.pass_time('61 seconds'), tests.beat('n1'), tests.beat('n2'), infernet.tick();
select is(tests.status('n1'), 'draining', 'the window begins by itself');
select is(tests.runners(), 'n2', 'then the node gets none');
select is(tests.beat('n1') #>> '{stops,0,why}', 'maintenance', 'it hears why');
select is((tests.beat('n1') #>> '{stops,0,until}')::timestamptz, '2026-11-01 12:02Z', 'and until when');
select tests.pass_time('60 seconds'), tests.beat('n2');
select is(tests.beat('n1') -> 'stops', '[]', 'the window ends by itself with the heartbeat');
select is(tests.status('n1'), 'online', 'and the node is online');
select is(tests.runners(), 'n1 n2', 'and gets work');
select tests.call_on('carol', 'set_maintenance', 'n1', ', null, ''2026-11-01 12:10Z''') is not null;
select is(tests.status('n1'), 'draining', 'a window without a beginning begins at once');
select tests.pass_time('10 minutes'), infernet.tick(), infernet.tick();
select is((select draining from public.node_liveness where node_id = tests.subject('n1')), false, 'the tick ends it where no heartbeat comes');
select is((select count(*) from public.node_stops), 0::bigint, 'and nothing is left of it');
select tests.beat('n1'), tests.beat('n2');
select tests.call_on('carol', 'set_maintenance', 'n1', ', null, ''2026-11-01 13:00Z''') is not null;
select is(tests.call_on('carol', 'set_maintenance', 'n1') -> 'maintenance', 'null', 'a window can be taken back');
select is(tests.status('n1'), 'online', 'which ends it');
select tests.call_on('olga', 'set_maintenance', 'n1', ', null, ''2026-11-01 13:00Z''') is not null;
select matches(tests.state_of($$select tests.call_on('carol', 'set_maintenance', 'n1')$$), 'PT403', 'an operator''s window is not the owner''s to take back');
select matches(tests.state_of($$select tests.call_on('carol', 'resume_node', 'n1')$$), 'PT403', 'nor to resume from');
select is(tests.call_on('olga', 'resume_node', 'n1') ->> 'status', 'online', 'resuming ends an open window');

-- ------------------------------------------------------------ pauses
-- Each in a second of its own.
create sequence tests.fault_number;
create function tests.fault(p_node text, p_code text default 'engine_failed', p_times int default 1) returns void
language sql as $$
  select tests.note_fault(tests.subject(p_node), p_code, infernet.clock() - make_interval(secs => nextval('tests.fault_number')))
  from generate_series(1, p_times)
$$;
select tests.fault('n1', c, 5) from unnest(array['bad_request', 'shutdown', 'deadline', 'node_lost', 'cancelled']) c;
select is((select count(*) from infernet.node_faults), 0::bigint, 'nobody is blamed for what is not the engine''s fault');
select tests.fault('n1', 'engine_failed', 2), infernet.tick();
select is(tests.status('n1'), 'online', 'two faults are no pause');
select tests.note_success(tests.subject('n1')), infernet.tick();
select is((select count(*) from infernet.node_faults), 0::bigint, 'a success forgets them');
select tests.note_success(tests.subject('n1'));
select is((select count(*) from infernet.node_faults), 0::bigint, 'and writes nothing where there is nothing to forget');
select tests.note_fault(tests.subject('n1'), 'engine_failed') from generate_series(1, 4);
select infernet.tick(), tests.note_fault(tests.subject('n1'), 'engine_unavailable');
select infernet.tick();
select is((select count(*) from infernet.node_faults), 1::bigint, 'what dies with one engine is one fault');
select is(tests.status('n1'), 'online', 'which pauses nobody');
select tests.note_success(tests.subject('n1')), infernet.tick();
select tests.fault('n1', 'engine_unavailable', 2), infernet.tick();
select tests.pass_time('10 minutes'), infernet.tick(), infernet.tick(), tests.beat('n1'), tests.beat('n2');
select tests.fault('n1', 'engine_unavailable', 2), infernet.tick();
select is(tests.status('n1'), 'online', 'faults of long ago do not count');
select tests.fault('n1', 'not_started'), infernet.tick();
select is(tests.status('n1'), 'paused', 'the third fault in a row pauses the node');
select is(tests.runners(), 'n2', 'a paused node gets no work');
create temp table paused as select tests.beat('n1') #> '{stops,0}' as stop;
select is(stop ->> 'why', 'paused', 'it hears of the pause') from paused;
select is(stop ->> 'reason', 'Its engine failed 3 times in a row, the last time with not_started.', 'of its reason') from paused;
select is((stop ->> 'until')::timestamptz, infernet.clock() + interval '60 seconds', 'of its end') from paused;
select matches(stop ->> 'hint', 'infernet node resume', 'and how to come back') from paused;
select is((select paused_until from public.node_stops), infernet.clock() + interval '60 seconds', 'owner and operator read the same in a row');
select tests.fault('n1', 'engine_failed', 5), infernet.tick();
select is((select paused_until from public.node_stops), infernet.clock() + interval '60 seconds', 'what still fails meanwhile does not prolong it');
select tests.pass_time('61 seconds'), infernet.tick(), tests.beat('n1'), tests.beat('n2');
select is(tests.status('n1'), 'online', 'the pause ends by itself');
select is(tests.runners(), 'n1 n2', 'and the node gets work');
select tests.fault('n1'), infernet.tick();
select is(tests.status('n1'), 'paused', 'after a pause one fault is enough');
select is((select paused_until from public.node_stops), infernet.clock() + interval '120 seconds', 'for a pause twice as long');
select tests.pass_time('121 seconds'), infernet.tick(), tests.beat('n1'), tests.beat('n2');
select tests.note_success(tests.subject('n1')), infernet.tick();
select is((select count(*) from public.node_stops), 0::bigint, 'a success forgets earlier pauses');
select tests.fault('n1', 'engine_failed', 2), infernet.tick();
select is(tests.status('n1'), 'online', 'so that two faults are none again');
select tests.fault('n1'), infernet.tick();
update public.node_stops set pauses = 40;
update public.node_stops set paused_until = null;
select infernet.refresh_stop(tests.subject('n1'), infernet.clock(), false), tests.fault('n1'), infernet.tick();
select is((select paused_until from public.node_stops), infernet.clock() + interval '1 hour', 'no pause is longer than the settings say');
select is(tests.call_on('carol', 'resume_node', 'n1') ->> 'status', 'online', 'the owner ends a pause');
select tests.fault('n1', 'engine_failed', 2), infernet.tick();
select is(tests.status('n1'), 'online', 'after which it counts from the start');
select tests.call_on('carol', 'resume_node', 'n1') is not null;
update public.settings set value = '0' where key = 'fault_limit';
select tests.fault('n1', 'engine_failed', 9), infernet.tick();
select is(tests.status('n1'), 'online', 'a limit of 0 pauses nobody');
update public.settings set value = '3' where key = 'fault_limit';
select tests.call_on('carol', 'resume_node', 'n1') is not null;

-- The same by real attempts: three jobs that fail on it one after another pause a node, and its queue waits for others.
create temp table failing as select ('00000000-0000-7000-8000-00000000010' || i)::uuid as job from generate_series(1, 4) i;
select tests.beat('n2', true) is not null, tests.beat('n1') is not null;
select tests.submit('alice', job) is not null from failing limit 3;
select tests.start('n1', tests.attempt(job), '11111111-1111-4111-8111-111111111111') is not null from failing where tests.attempt(job) is not null;
select tests.as('n1', format('public.fail_attempt(%L, ''11111111-1111-4111-8111-111111111111'', ''engine_failed'', ''It died.'')', tests.attempt(job))) is not null,
  tests.pass_time('1 second')
from failing where tests.attempt(job) is not null;
select infernet.tick() is not null;
select is(tests.status('n1'), 'paused', 'three jobs that fail on it pause a node');
select matches(tests.beat('n1') #>> '{stops,0,reason}', 'Its engine failed 3 times in a row, the last time with engine_failed', 'with the reason');
select is(tests.beat('n1') -> 'attempts', '[]', 'their retries are not given to it');
select tests.beat('n2') is not null, tests.pass_time('3 seconds'), infernet.tick();
select is((select count(*) from failing where tests.runner(job) = 'n2'), 3::bigint, 'another node gets them');
select tests.as('alice', format('public.cancel_job(%L)', j.id)) is not null from public.jobs j where j.id in (select job from failing) and j.state in ('queued', 'assigned');
select tests.call_on('carol', 'resume_node', 'n1') is not null;

-- ------------------------------------------------------------ commands
select matches(tests.state_of(format($$select tests.call_on('carol', 'command_node', 'n1', %L)$$, c.rest)), c.state, 'refused: command_node' || c.rest)
from (values
  (', ''format_disk''', 'PT422 .*no command'), (', null', 'PT422'), (', ''pull_model''', 'PT422 pull_model needs'),
  (', ''pull_model'', ''{"model":"-rf"}''', 'PT422 -rf is no name'), (', ''pull_model'', ''{"model":"a b"}''', 'PT422'),
  (', ''pull_model'', ''{"model":7}''', 'PT422'), (', ''pull_model'', ''{"model":"m","digest":"x"}''', 'PT422'),
  (', ''pull_model'', ''{"model":"m","url":"http://x"}''', 'PT422 pull_model takes no argument url'),
  (', ''drain'', ''{"model":"m"}''', 'PT422'), (', ''drain'', ''[]''', 'PT422'), (', ''drain'', ''{}'', 0', 'PT422'),
  (', ''drain'', ''{}'', 999999999', 'PT422')) as c (rest, state);
create temp table command as select tests.call_on('carol', 'command_node', 'n1', ', ''pull_model'', ''{"model":"llama"}''') as answer;
create temp table command_id as select (answer ->> 'id')::uuid as id from command;
grant select on command, command_id to public;
select is(answer ->> 'state', 'pending', 'an owner gives a command') from command;
select is((tests.call_on('carol', 'command_node', 'n1', ', ''pull_model'', ''{"model":"llama"}''')) ->> 'created', 'false', 'which is not issued twice');
select is((select count(*) from realtime.messages where topic = 'node:' || tests.subject('n1') and event = 'command'), 1::bigint, 'a message hints at it');
select is(tests.beat('n1') #> '{commands,0,args}', '{"model":"llama"}', 'the heartbeat brings it');
select is(tests.beat('n1') #>> '{commands,0,id}', (select id::text from command_id), 'and brings it again until it is finished');
select is(tests.as('n1', 'public.claim_attempts()') #>> '{commands,0,id}', (select id::text from command_id), 'so does a claim');
select is(tests.beat('n2') -> 'commands', '[]', 'another node does not hear of it');
select matches(tests.state_of($$select tests.as('n2', 'public.acknowledge_command((select id from command_id))')$$), 'PT404', 'nor acknowledge it');
select matches(tests.state_of($$select tests.as('n2', 'public.finish_command((select id from command_id), true)')$$), 'PT404', 'nor finish it');
select is(tests.as('n1', 'public.acknowledge_command((select id from command_id))') ->> 'accepted', 'true', 'the node acknowledges it');
select is(tests.as('n1', 'public.acknowledge_command((select id from command_id))') ->> 'accepted', 'true', 'twice, if it must');
select is(tests.as('n1', 'public.finish_command((select id from command_id), false, ''{"a":1}'', E''no\nsuch'')') ->> 'state', 'failed', 'it says that it failed');
select is((select error from public.node_commands), 'no such', 'and why');
select is(tests.as('n1', 'public.finish_command((select id from command_id), true)') ->> 'accepted', 'false', 'and cannot change that');
select is((select state from public.node_commands), 'failed', 'whatever it says later');
select is(tests.as('n1', 'public.acknowledge_command((select id from command_id))') ->> 'accepted', 'false', 'an ended command is not begun again');
select is(tests.beat('n1') -> 'commands', '[]', 'and no longer brought');
select is((select has_commands from public.node_liveness where node_id = tests.subject('n1')), false, 'heartbeats do not look for it any more');
select matches(tests.state_of($$select tests.as('n1', 'public.finish_command((select id from command_id), true, to_jsonb(repeat(''x'', 5000)))')$$), 'PT413', 'a result is bounded');

select tests.call_on('olga', 'command_node', 'n1', ', ''restart_engine''') is not null;
select is((select state from public.node_commands where command = 'restart_engine'), 'pending', 'an operator gives commands too');
select is(tests.as('carol', format('public.cancel_command(%L)', (select id from public.node_commands where command = 'restart_engine'))) ->> 'state', 'cancelled', 'a command is taken back');
select is(tests.as('carol', format('public.cancel_command(%L)', (select id from public.node_commands where command = 'restart_engine'))) ->> 'state', 'cancelled', 'safely so');
select is(tests.beat('n1') -> 'commands', '[]', 'and not brought any more');
select is(tests.as('n1', format('public.finish_command(%L, true)', (select id from public.node_commands where command = 'restart_engine'))) ->> 'accepted', 'false', 'nor finished');
select matches(tests.state_of($$select tests.as('dave', 'public.cancel_command((select id from command_id))')$$), 'PT404', 'another owner takes nothing back');

select tests.call_on('carol', 'command_node', 'n1', ', ''resume'', ''{}'', 30') is not null;
select tests.beat('n1') is not null;
select tests.pass_time('31 seconds'), infernet.tick();
select is((select state from public.node_commands where command = 'resume'), 'expired', 'what nobody finished in time expires');
select is(tests.beat('n1') -> 'commands', '[]', 'and is not brought');
select tests.call_on('carol', 'command_node', 'n1', format(', ''pull_model'', ''{"model":"m%s"}''', i)) is not null from generate_series(1, 20) i;
select matches(tests.state_of($$select tests.call_on('carol', 'command_node', 'n1', ', ''drain''')$$), 'PT409', 'a bounded number waits');
select is(jsonb_array_length(tests.beat('n1') -> 'commands'), 20, 'all of which are brought');

-- ------------------------------------------------------------ inventory, and being online
select matches(tests.state_of(format('select tests.as(''n1'', %L)', format('public.register_node(%L)', i))), 'PT422', 'no inventory: ' || i)
from unnest(array['{"gpus":1}', '{"gpus":[1]}', '{"gpus":[{"vendor":"x","model":"y"}]}', '{"gpus":[{"vendor":"x","model":"<b>","vram_tier":"8GB"}]}',
  '{"gpus":[{"vendor":"x","model":"y","vram_tier":"much"}]}', '{"cpus":"4"}', '{"cpus":-1}', '{"cpus":1.5}', '{"platform":{}}', '{"region":"a\nb"}',
  '{"labels":"x"}', '{"labels":["X"]}', '{"labels":[1]}', '{"labels":["-x"]}']) i;
select matches(tests.state_of(format('select tests.as(''n1'', %L)', format('public.register_node(%L)',
  jsonb_build_object('labels', (select jsonb_agg('l' || i) from generate_series(1, 33) i))))), 'PT422', 'labels are bounded');
select tests.as('n1', 'public.register_node(''{"platform":"linux","secret":"x","region":"eu-west","labels":["ssd","a100","ssd"],
  "gpus":[{"vendor":"nvidia","model":"A100","vram_tier":"80GB","serial":"123"},{"vendor":"nvidia","model":"A100","vram_tier":"40GB"}]}'')') is not null;
select is(specs, '{"platform":"linux","region":"eu-west","gpus":[{"vendor":"nvidia","model":"A100","vram_tier":"80GB"},{"vendor":"nvidia","model":"A100","vram_tier":"40GB"}]}',
  'only what is known is kept of an inventory') from public.providers where name = 'n1';
select is(labels, array['a100', 'ssd'], 'labels once each') from public.providers where name = 'n1';
select is(vram_gb, 120, 'the memory of all GPUs') from public.providers where name = 'n1';
select is(region, 'eu-west', 'and the region') from public.providers where name = 'n1';
select tests.as('n1', 'public.leave()') is not null;
select tests.as('n1', 'public.register_node(''{}'', ''[]'', ''1'', false)') is not null;
select is(tests.status('n1'), 'offline', 'a node that registers without being there stays offline');
select is((select lease_until <= infernet.clock() from public.node_liveness where node_id = tests.subject('n1')), true, 'and gets no lease');
select tests.as('n1', 'public.register_node(''{}'')') is not null;
select is(tests.status('n1'), 'online', 'one that is there is online');

-- ------------------------------------------------------------ looking at nodes
select is(jsonb_path_query_array(tests.as('carol', 'public.list_nodes()'), '$.nodes[*].name'), '["n1"]', 'an owner lists its own nodes');
select is(jsonb_path_query_array(tests.as('olga', 'public.list_nodes()'), '$.nodes[*].name'), '["n1","n2"]', 'an operator everybody''s');
select is(jsonb_path_query_array(tests.as('alice', 'public.list_nodes()'), '$.nodes[*].name'), '[]', 'a consumer none');
select is(jsonb_path_query_array(tests.as('olga', 'public.list_nodes(''paused'')'), '$.nodes[*].name'), '[]', 'or those of one status');
select matches(tests.state_of($$select tests.as('olga', 'public.list_nodes(''sleepy'')')$$), 'PT422', 'which must be one');
select is(tests.as('carol', 'public.get_node(''n1'')') ->> 'id', tests.subject('n1')::text, 'a node is found by its name');
select is(tests.as('carol', format('public.get_node(%L)', upper(tests.subject('n1')::text))) ->> 'name', 'n1', 'or its id');
select is(jsonb_array_length(tests.as('carol', 'public.get_node(''n1'')') -> 'commands'), 20, 'with its last commands');
select matches(tests.state_of($$select tests.as('dave', 'public.get_node(''n1'')')$$), 'PT404', 'and by nobody else');
update public.providers set name = 'n1' where name = 'n2';
select matches(tests.state_of($$select tests.as('olga', 'public.get_node(''n1'')')$$), 'PT409', 'a name that two nodes have is refused');
update public.providers set name = 'n2' where id = tests.subject('n2');

-- ------------------------------------------------------------ settings at once
select is(infernet.settings_now(), (select jsonb_object_agg(key, value) from public.settings), 'the copy of the settings is whole');
update public.settings set value = '7' where key = 'heartbeat_secs';
insert into public.settings (key, value, description) values ('planted', '1', 'x');
select is(infernet.settings_now(), (select jsonb_object_agg(key, value) from public.settings), 'follows a change and an addition');
update public.settings set key = 'replanted' where key = 'planted';
select is(infernet.settings_now(), (select jsonb_object_agg(key, value) from public.settings), 'a new name');
delete from public.settings where key = 'replanted';
select is(infernet.settings_now(), (select jsonb_object_agg(key, value) from public.settings), 'and a removal');
select is((tests.beat('n1') ->> 'heartbeat_secs')::int, 7, 'calls read the new value at once');
select matches(tests.state_of($$update public.settings set value = to_jsonb(repeat('x', 9000)) where key = 'input_keys'$$), '22|PT422|23514', 'settings stay small');

select * from finish();
rollback;
