-- The queue: whose turn it is, how much of it one consumer may take, and what becomes of jobs that wait, are
-- cancelled, are tried again or fail for good.
begin;
\ir actors.psql
select no_plan();
update public.settings set value = '{"load": 1}' where key = 'weights';
update public.settings set value = '0' where key = 'fault_limit';

select tests.set_clock('2026-11-01 12:00:00+00');
select tests.operator('olga'), tests.user('alice'), tests.user('bob'), tests.user('chris'), tests.user('zoe');
select tests.credit('alice', 100), tests.credit('bob', 100), tests.credit('chris', 100), tests.credit('zoe', 100);
select tests.node('n1', 'nora'), tests.node('n2', 'ned');
select infernet.tick();
select tests.online('n1');

-- A job of this name; its id follows from the order in which it was submitted, as with UUIDv7.
create sequence tests.n;
create temp table named (name text primary key, id uuid not null, consumer text not null);
create function tests.job(p_consumer text, p_name text, p_rest text default '', p_id uuid default null) returns jsonb
language plpgsql as $$
declare
  v_id uuid := coalesce(p_id, ('00000000-0000-7000-8000-' || lpad(nextval('tests.n')::text, 12, '0'))::uuid);
begin
  insert into named values (p_name, v_id, p_consumer) on conflict (name) do nothing;
  return tests.as(p_consumer, format('public.submit_job(%L, ''m'', ''{"messages":[{"role":"user","content":"hello"}]}'', p_max_tokens => 100, p_max_cost => 0.01, p_title => %L%s)',
                                     v_id, p_name, p_rest));
end $$;
create function tests.id(p_name text) returns uuid language sql as $$ select id from named where name = p_name $$;
create function tests.on_job(p_call text, p_name text, p_actor text default null) returns jsonb
language sql as $$ select tests.as(coalesce(p_actor, consumer), format('public.%I(%L)', p_call, id)) from named where name = p_name $$;
create function tests.state(p_name text) returns text language sql as $$ select state::text from public.jobs where id = tests.id(p_name) $$;
create function tests.waits_for(p_name text) returns text language sql as $$ select tests.on_job('get_job', p_name) #>> '{waiting,code}' $$;
create function tests.attempt(p_name text) returns uuid language sql as $$ select attempt_id from public.jobs where id = tests.id(p_name) $$;
create function tests.runner(p_name text) returns text
language sql as $$ select provider_name from public.job_attempts where id = tests.attempt(p_name) and state in ('offered', 'running') $$;
create function tests.beat(p_node text) returns jsonb
language sql as $$ select tests.as(p_node, 'public.heartbeat(array(select id from public.job_attempts where provider_id = auth.uid() and state = ''running''))') $$;
-- The jobs that the node n1 gets one after another, each of which is cancelled for the next.
create function tests.turns(p_count int) returns text
language plpgsql as $$
declare
  v_names text[] := '{}';
  v_name  text;
begin
  for i in 1 .. p_count loop
    select n.name into v_name from infernet.live_attempts l join named n on n.id = l.job_id where l.provider_id = tests.subject('n1');
    exit when not found;
    v_names := v_names || v_name;
    perform tests.on_job('cancel_job', v_name);
  end loop;
  return array_to_string(v_names, ' ');
end $$;
create function tests.finish(p_name text) returns text
language sql as $$
  select tests.start(tests.runner(p_name), tests.attempt(p_name), tests.id(p_name)) ->> 'none';
  select tests.complete(tests.runner(p_name), tests.attempt(p_name), tests.id(p_name)) ->> 'job_state'
$$;
create function tests.seconds(p_count int) returns void
language plpgsql as $$
begin
  for i in 1 .. p_count loop
    perform tests.pass_time('1 second');
    perform tests.beat('n1') from public.node_liveness where node_id = tests.subject('n1') and lease_until > infernet.clock();
    perform tests.beat('n2') from public.node_liveness where node_id = tests.subject('n2') and lease_until > infernet.clock();
    perform infernet.tick();
  end loop;
end $$;
create function tests.limits(p_name text, p_priority int default 0, p_queued int default null, p_running int default null) returns jsonb
language sql as $$ select tests.as('olga', format('public.set_consumer_limits(%L, %L, %L, %L)', tests.key(p_name), p_priority, p_queued, p_running)) $$;
create function tests.books() returns text
language sql as $$ select case when (infernet.prove_ledger() -> 'ok')::boolean then 'whole' else infernet.prove_ledger() ->> 'faults' end $$;

-- ------------------------------------------------------------ fair share
select tests.job('zoe', 'z0');
select tests.job('alice', 'a' || i) from generate_series(1, 100) i;
select tests.job('bob', 'b1');
select is(tests.turns(4), 'z0 a1 b1 a2', 'a hundred jobs of one consumer: another''s only job is next but one');
select tests.job('bob', 'b' || i) from generate_series(2, 4) i;
select tests.job('chris', 'c' || i) from generate_series(1, 3) i;
select is(tests.turns(10), 'a3 b2 c1 a4 b3 c2 a5 b4 c3 a6', 'three consumers take turns, whoever came first');
select is(tests.turns(3), 'a7 a8 a9', 'where nobody else waits, one has it all');
select tests.job('chris', 'c4'), tests.job('chris', 'c5');
select is(tests.turns(4), 'a10 c4 a11 c5', 'who comes anew has no arrears and no credit');
select is((tests.on_job('get_job', 'a100') #>> '{waiting,ahead}')::int, 87, 'who waits is told how many are ahead');
select tests.on_job('cancel_job', 'a' || i) from generate_series(12, 100) i;
select is((select count(*) from infernet.queue), 0::bigint, 'the line is empty');

-- The fairness is within what a node can serve: others'' jobs are not in the way.
select tests.job('zoe', 'z1');
select tests.job('alice', 'big' || i, ', p_needs => ''{"vram_gb": 80}''') from generate_series(1, 40) i;
select tests.job('bob', 'small');
select is(tests.turns(2), 'z1 small', 'jobs that a node cannot serve are passed by');
select tests.on_job('cancel_job', 'big' || i) from generate_series(1, 40) i;

-- ------------------------------------------------------------ retried jobs come first
select tests.job('zoe', 'z2'), tests.job('alice', 'd1'), tests.job('bob', 'e1');
select tests.start('n1', tests.attempt('z2'), tests.id('z2'));
select is(tests.as('n1', format('public.fail_attempt(%L, %L, ''engine_failed'', ''out of memory'')', tests.attempt('z2'), tests.id('z2'))) ->> 'job_state', 'queued', 'a job whose node failed waits again');
select is(tests.waits_for('z2'), 'retrying', 'and says so');
select tests.online('n2');
select is(tests.runner('z2'), 'n2', 'the next node gets it before those that have waited since');
select tests.as('n1', 'public.heartbeat()');
select is(tests.runner('d1'), 'n1', 'and its own node the next of the line');
select tests.as('n2', 'public.leave()');
select is(tests.state('z2'), 'queued', 'what is handed back waits too');
select is((select (tag, priority) from infernet.queue where job_id = tests.id('z2')), (0::bigint, 0::smallint), 'at the head');
select tests.on_job('cancel_job', n) from unnest('{z2,e1,d1}'::text[]) n;

-- ------------------------------------------------------------ priorities
select throws_ok(format('select tests.job(''alice'', ''p'', '', p_priority => %s'')', v.p), 'PT422', v.message, 'priority ' || v.p)
from (values (1, 'Your jobs'' priority may be -9 to 0.'), (9, 'Your jobs'' priority may be -9 to 0.'), (-10, 'Your jobs'' priority may be -9 to 0.')) as v (p, message);
select is(tests.limits('bob', 5) - 'id' - 'public_key', '{"priority_max": 5, "queued_limit": 20000, "running_limit": 1000}', 'an operator lets somebody in front');
select throws_ok($$select tests.job('bob', 'p', ', p_priority => 6')$$, 'PT422', 'Your jobs'' priority may be -9 to 5.', 'so far and no further');
select tests.job('zoe', 'z3');
select tests.job('alice', 'low', ', p_priority => -1'), tests.job('alice', 'f1'), tests.job('chris', 'g1'), tests.job('chris', 'lower', ', p_priority => -9'),
       tests.job('bob', 'high', ', p_priority => 5'), tests.job('alice', 'f2'), tests.job('bob', 'higher', ', p_priority => 4');
select is(tests.turns(8), 'z3 high higher f1 g1 f2 low lower', 'higher priorities come first, one''s own jobs may yield');
select is(tests.limits('bob') -> 'priority_max', '0', 'it is taken back');
select throws_ok($$select tests.job('bob', 'p', ', p_priority => 1')$$, 'PT422', null, 'and holds no more');
select throws_ok(format('select tests.as(''olga'', ''public.set_consumer_limits(%s)'')', replace(v.args, '''', '''''')), v.state, null, 'limits: ' || v.args)
from (values (quote_literal(tests.key('bob')) || ', 10', 'PT422'), (quote_literal(tests.key('bob')) || ', -1', 'PT422'),
             (quote_literal(tests.key('bob')) || ', 0, -1', 'PT422'), (quote_literal(tests.key('bob')) || ', 0, 0, -1', 'PT422'),
             (quote_literal(repeat('0', 64)), 'PT404'), ('null', 'PT404')) as v (args, state);
select throws_ok(format($$select tests.as('bob', 'public.set_consumer_limits(''%s'', 9)')$$, tests.key('bob')), 'PT403', null, 'nobody sets their own');

-- ------------------------------------------------------------ how many may wait
select tests.limits('alice', 0, 3);
select tests.job('alice', 'h0'), tests.job('alice', 'h1'), tests.job('alice', 'h2'), tests.job('alice', 'h3');
select is((tests.state('h0'), tests.state('h3')), ('assigned'::text, 'queued'::text), 'a job that need not wait does not count');
create temp table before as select tests.balance('alice') as available, tests.balance('alice', 'held') as held;
select throws_ok($$select tests.job('alice', 'h4')$$, 'PT429', 'At most 3 of your jobs may wait at a time.', 'more than may wait are refused');
select throws_ok($$select tests.job('alice', 'h4', ', p_delay_secs => 60')$$, 'PT429', null, 'also those for later');
select is((tests.balance('alice'), tests.balance('alice', 'held'), (select count(*) from public.jobs where title = 'h4')), (available, held, 0::bigint), 'and nothing is left of them') from before;
select lives_ok($$select tests.job('bob', 'i1')$$, 'others may still wait');
select tests.on_job('cancel_job', 'h3');
select lives_ok($$select tests.job('alice', 'h5')$$, 'with one less there is room again');
select tests.on_job('cancel_job', n) from unnest('{h5,h2}'::text[]) n;
create function tests.batch(p_items int) returns jsonb
language sql as $$ select tests.as('alice', format('public.submit_batch(gen_random_uuid(), ''m'', %L, p_max_cost => 0.01)',
  (select jsonb_agg('{"messages":[{"role":"user","content":"hello"}]}'::jsonb) from generate_series(1, p_items)))) $$;
select throws_ok('select tests.batch(3)', 'PT429', null, 'a batch is counted as a whole');
select tests.limits('alice', 0, 0);
select throws_ok($$select tests.job('alice', 'h6')$$, 'PT429', null, 'who may have none waiting');
select tests.on_job('cancel_job', n) from unnest('{h1,i1,h0}'::text[]) n;
select is(tests.job('alice', 'h7') ->> 'state', 'assigned', 'gets what is free at once');
select tests.limits('alice'), tests.on_job('cancel_job', 'h7');
update public.settings set value = '1' where key = 'queued_limit';
select tests.job('zoe', 'z4'), tests.job('alice', 'h8');
select throws_ok($$select tests.job('alice', 'h9')$$, 'PT429', 'At most 1 of your jobs may wait at a time.', 'what is set for nobody in particular holds for everybody');
update public.settings set value = '20000' where key = 'queued_limit';
select tests.on_job('cancel_job', n) from unnest('{h8,z4}'::text[]) n;

-- ------------------------------------------------------------ how many may run
select tests.online('n1', 4), tests.limits('alice', 0, null, 1);
select tests.job('alice', 'k1'), tests.job('alice', 'k2'), tests.job('alice', 'k3'), tests.job('bob', 'l1');
select is((tests.state('k1'), tests.state('k2'), tests.state('k3')), ('assigned'::text, 'queued'::text, 'queued'::text), 'of three jobs, as many run as may');
select is((tests.waits_for('k2'), tests.waits_for('k3')), ('running_limit'::text, 'running_limit'::text), 'the others say what they wait for');
select is(tests.runner('l1'), 'n1', 'and are passed by');
select tests.beat('n1'), infernet.tick();
select is(tests.state('k2'), 'queued', 'also when the node asks, and when the tick looks');
select tests.job('bob', 'l2', ', p_priority => -1'), tests.job('bob', 'l3'), tests.job('bob', 'l4');
select is(tests.on_job('cancel_job', 'l1') ->> 'state', 'cancelled', 'a slot becomes free');
select is(tests.state('l4'), 'assigned', 'which goes to the next who may run, past those who may not');
select is(tests.finish('k1'), 'completed', 'when the one that runs has ended');
select is((tests.state('k2'), tests.state('k3')), ('assigned'::text, 'queued'::text), 'the next one runs');
select tests.limits('alice');
select tests.on_job('cancel_job', n) from unnest('{l2,l3,l4}'::text[]) n;
select tests.beat('n1');
select is(tests.state('k3'), 'assigned', 'without the limit all of them');
select tests.on_job('cancel_job', n) from unnest('{k2,k3}'::text[]) n;
select tests.limits('alice', 0, null, 0);
select is((tests.job('alice', 'k4') ->> 'state', tests.waits_for('k4')), ('queued'::text, 'running_limit'::text), 'who may run none waits for good');
select tests.limits('alice'), infernet.tick();
select is(tests.state('k4'), 'assigned', 'until that is changed');
select tests.on_job('cancel_job', 'k4');

-- ------------------------------------------------------------ a delayed start
select is((j ->> 'state', j #>> '{waiting,code}'), ('queued'::text, 'delayed'::text), 'a job may begin later') from tests.job('alice', 'later', ', p_delay_secs => 60, p_deadline_secs => 30') j;
select is((tests.on_job('get_job', 'later') ->> 'deadline_at')::timestamptz, infernet.clock() + interval '90 seconds', 'its deadline counts from then');
select tests.seconds(59);
select is(tests.state('later'), 'queued', 'until then no node gets it');
select tests.seconds(2);
select is(tests.runner('later'), 'n1', 'then the first that is free');
select tests.on_job('cancel_job', 'later');
select throws_ok(format($$select tests.job('alice', 'never', ', p_delay_secs => %s')$$, v.secs), 'PT422', 'A job may be delayed by 0 to 604800 seconds.', 'no delay: ' || v.secs) from (values (-1), (604801)) as v (secs);
select tests.online('n1', 1);
select tests.job('zoe', 'z5'), tests.job('alice', 'soon', ', p_delay_secs => 10'), tests.job('bob', 'm1'), tests.job('bob', 'm2');
select tests.start('n1', tests.attempt('z5'), tests.id('z5')), tests.seconds(11);
select tests.complete('n1', tests.attempt('z5'), tests.id('z5'));
select is(tests.turns(4), 'm1 soon m2', 'it joins the line as if it came then');
select tests.job('zoe', 'z9'), tests.job('bob', 'm3'), tests.job('bob', 'm4'), tests.job('bob', 'm5');
select tests.job('alice', 'tomorrow' || i, ', p_delay_secs => 86400') from generate_series(1, 20) i;
select tests.job('alice', 'today');
select is(tests.turns(5), 'z9 m3 m4 today m5', 'what is to begin later takes no turns before, nor is held against anybody what they were served or cancelled');
select tests.on_job('cancel_job', 'tomorrow' || i) from generate_series(1, 20) i;

-- ------------------------------------------------------------ deadlines
select tests.job('zoe', 'z6'), tests.job('alice', 'short', ', p_deadline_secs => 30'), tests.job('alice', 'long');
select tests.start('n1', tests.attempt('z6'), tests.id('z6'));
select tests.seconds(29);
select is(tests.state('short'), 'queued', 'a job waits until its deadline');
select tests.pass_time('1 second'), tests.beat('n1');
select tests.complete('n1', tests.attempt('z6'), tests.id('z6'));
select is((tests.state('short'), tests.state('long')), ('queued'::text, 'assigned'::text), 'past it, no node gets it, also before a tick');
select infernet.tick();
select is(tests.state('short'), 'expired', 'the next tick ends it');
select is(tests.on_job('get_job', 'short') -> 'error', '{"code": "deadline", "message": "The deadline passed before a node took the job."}', 'with the reason');
select is(tests.balance('alice', 'held'), 0.01, 'and its money is free');
select tests.on_job('cancel_job', 'long');
select throws_ok(format($$select tests.job('alice', 'never', ', p_deadline_secs => %s')$$, v.secs), 'PT422', null, 'no deadline: ' || v.secs) from (values (0), (-1), (86401)) as v (secs);

-- ------------------------------------------------------------ the same job again
select tests.job('zoe', 'z7'), tests.job('alice', 'once');
select is((j ->> 'created', j ->> 'state'), ('false'::text, 'queued'::text), 'the same job again is the same job') from tests.job('alice', 'once', '', tests.id('once')) j;
select is(tests.balance('alice', 'held'), 0.01, 'held for once');
select throws_ok(format($$select tests.job('alice', 'once', %L, tests.id('once'))$$, v.rest), 'PT409', null, 'another one of its id is refused:' || v.rest)
from (values (', p_priority => -1'), (', p_needs => ''{"vram_gb":1}'''), (', p_delay_secs => 1'), (', p_deadline_secs => 599'), (', p_kind => ''completion''')) as v (rest);
select throws_ok($$select tests.job('alice', 'other title', '', tests.id('once'))$$, 'PT409', null, 'also one of another title');
select throws_ok($$select tests.job('bob', 'once', '', tests.id('once'))$$, 'PT409', null, 'and somebody else''s');
select tests.on_job('cancel_job', 'z7');
select is(tests.finish('once'), 'completed', 'it runs');
select is((j ->> 'created', j ->> 'state', j ->> 'output'), ('false'::text, 'completed'::text, 'hello world'::text), 'and is answered after its end too') from tests.job('alice', 'once', '', tests.id('once')) j;
select is((select count(*) from public.ledger_transfers where job_id = tests.id('once')), 2::bigint, 'with one hold and one payment');

-- ------------------------------------------------------------ cancelled, in each state
select tests.job('zoe', 'z8'), tests.job('alice', 'in line'), tests.job('alice', 'delayed', ', p_delay_secs => 60'), tests.job('alice', 'unpaid');
select infernet.release_hold(j) from public.jobs j where id = tests.id('unpaid');
update public.jobs set state = 'unpaid' where id = tests.id('unpaid');
update infernet.queue set ready_at = 'infinity' where job_id = tests.id('unpaid');
create temp table cancelled as select n.name, tests.on_job('cancel_job', n.name) as j from unnest('{in line,delayed,unpaid}'::text[]) n (name);
select is(j ->> 'state', 'cancelled', name || ': ended at once') from cancelled;
select is((select count(*) from infernet.queue), 0::bigint, 'none of them waits any more');
select is(tests.balance('alice', 'held'), 0::numeric, 'nothing is held for them');
select is(tests.on_job('cancel_job', 'z8') ->> 'state', 'cancelled', 'assigned: ended at once');
select tests.job('alice', 'running'), tests.start('n1', tests.attempt('running'), tests.id('running'));
select is(tests.on_job('cancel_job', 'running') ->> 'state', 'cancelling', 'running: its node is told');
select is(tests.beat('n1') -> 'cancel' ->> 0, tests.attempt('running')::text, 'by its heartbeat');
select is(tests.on_job('cancel_job', 'running') ->> 'state', 'cancelling', 'cancelling: once is enough');
select tests.pass_time('1 second');
select is(tests.complete('n1', tests.attempt('running'), tests.id('running'), 'hel', 'cancelled', 5, 1) ->> 'job_state', 'cancelled', 'what was delivered until then');
select is((select (cost, finish) from public.jobs where id = tests.id('running')), (0.000007::numeric(38,12), 'cancelled'::text), 'is paid');
select tests.job('alice', 'deaf'), tests.start('n1', tests.attempt('deaf'), tests.id('deaf')), tests.on_job('cancel_job', 'deaf');
select tests.seconds(9);
select is(tests.state('deaf'), 'cancelling', 'a node has cancel_secs to answer');
select tests.seconds(2);
select is((tests.state('deaf'), tests.balance('alice', 'held')), ('cancelled'::text, 0::numeric), 'then it is cancelled without, and costs nothing');
create temp table ended as select n.name, tests.state(n.name) as before, tests.on_job('cancel_job', n.name) ->> 'state' as after from unnest('{once,short,deaf}'::text[]) n (name);
select is(after, before, before || ': stays as it is') from ended;
select is(tests.books(), 'whole', 'the books are whole');

-- ------------------------------------------------------------ tried again, so often and no more
update public.settings set value = '5' where key = 'max_attempts';
select tests.job('alice', 'hard');
create function tests.fail(p_name text, p_code text default 'engine_failed', p_message text default 'out of memory') returns text
language plpgsql as $$
declare
  v_wait text;
begin
  perform tests.start('n1', tests.attempt(p_name), tests.id(p_name));
  perform tests.as('n1', format('public.fail_attempt(%L, %L, %L, %L)', tests.attempt(p_name), tests.id(p_name), p_code, p_message));
  select extract(epoch from j.retry_after - infernet.clock())::int::text into v_wait from public.jobs j where j.id = tests.id(p_name) and j.state = 'queued';
  perform tests.seconds(coalesce(v_wait::int - 1, 0));
  if tests.state(p_name) not in ('queued', 'failed') then
    raise exception '% came back to its node early', p_name;
  end if;
  perform tests.seconds(1);
  return coalesce(v_wait, tests.state(p_name));
end $$;
update public.settings set value = '10' where key = 'retry_secs_max';
select is(array(select tests.fail('hard') from generate_series(1, 5)), '{2,4,8,10,failed}', 'each time it waits twice as long for its node, up to retry_secs_max; after max_attempts it has failed');
select is(tests.on_job('get_job', 'hard') -> 'error', '{"code": "engine_failed", "message": "out of memory"}', 'with what its last node said');
select is((tests.balance('alice', 'held'), (select count(*) from public.job_attempts where job_id = tests.id('hard'))), (0::numeric, 5::bigint), 'for nothing');
update public.settings set value = '2' where key = 'max_attempts';
update public.settings set value = '60' where key = 'retry_secs_max';
select tests.job('alice', 'moved');
select is(array(select tests.fail('moved', 'shutdown') from generate_series(1, 4)), '{2,2,2,2}', 'what a node hands back does not count');
select is(tests.fail('moved', 'bad_request', 'no such option'), 'failed', 'what is the job''s own fault is not tried again');
select tests.job('alice', 'final'), tests.start('n1', tests.attempt('final'), tests.id('final'));
select tests.as('n1', format('public.fail_attempt(%L, %L, ''engine_failed'', ''broken'', false)', tests.attempt('final'), tests.id('final')));
select is(tests.state('final'), 'failed', 'nor what its node knows to be hopeless');
-- Another node need not wait.
select tests.online('n2'), tests.job('alice', 'wanders');
create temp table wander as select tests.runner('wanders') as first;
select tests.start(first, tests.attempt('wanders'), tests.id('wanders')) from wander;
select tests.as(first, format('public.fail_attempt(%L, %L, ''engine_failed'')', tests.attempt('wanders'), tests.id('wanders'))) from wander;
select is((tests.state('wanders'), tests.runner('wanders') <> first), ('assigned'::text, true), 'where there is another node, it goes there at once') from wander;
select tests.on_job('cancel_job', 'wanders'), tests.as('n2', 'public.leave()');

-- ------------------------------------------------------------ failed for good: listed, tried anew, discarded
create function tests.failed(p_actor text, p_args text default '') returns text
language sql as $$ select coalesce(string_agg(j ->> 'title', ' ' order by n), '') from jsonb_array_elements(tests.as(p_actor, format('public.failed_jobs(%s)', p_args)) -> 'jobs') with ordinality as f (j, n) $$;
select is(tests.failed('alice'), 'final moved hard short', 'what has failed or expired is listed, the last first');
select is(j - 'id' - 'failed_at', '{"state": "failed", "model": "m", "title": "final", "batch": null, "error": {"code": "engine_failed", "message": "broken"},
  "attempts": [{"number": 1, "node": "n1", "state": "failed", "code": "engine_failed", "message": "broken"}]}', 'with what each attempt said')
from jsonb_array_elements(tests.as('alice', 'public.failed_jobs(1)') -> 'jobs') j;
select is(tests.failed('alice', '2'), 'final moved', 'so many of them');
select is(tests.failed('alice', format('2, %L', f.failed_at)), 'hard short', 'and from there on') from infernet.failed_jobs f where f.job_id = tests.id('moved');
select throws_ok(format('select tests.failed(''alice'', ''%s'')', v.n), 'PT422', null, 'a list of ' || v.n) from (values ('0'), ('1001'), ('null'), ('-1')) as v (n);
select is((tests.failed('bob'), tests.failed('olga')), (''::text, ''::text), 'nobody lists anybody else''s');

create temp table held as select tests.balance('alice') as available, (select hold_id from public.jobs where id = tests.id('hard')) as hold;
select is((j ->> 'state', j ->> 'attempts', j -> 'error'), ('assigned'::text, '1'::text, null::jsonb), 'a job that failed is tried anew, from its beginning') from (select jsonb_strip_nulls(tests.on_job('retry_job', 'hard')) as j) r;
select is((tests.balance('alice'), tests.balance('alice', 'held')), (available - 0.01, 0.01), 'its cap is held again') from held;
select isnt((select hold_id from public.jobs where id = tests.id('hard')), hold, 'by a hold of its own') from held;
select is(tests.failed('alice'), 'final moved short', 'it is off the list');
select is(tests.on_job('retry_job', 'hard') ->> 'state', 'assigned', 'once more is the same');
select is(tests.balance('alice', 'held'), 0.01, 'and holds nothing more');
select is((select (number, state::text) from public.job_attempts where id = tests.attempt('hard')), (6, 'offered'::text), 'its attempts are counted on');
select is(tests.books(), 'whole', 'the books are whole');
select is(tests.finish('hard'), 'completed', 'it can succeed');
select is((tests.balance('alice', 'held'), (select cost from public.jobs where id = tests.id('hard'))), (0::numeric, 0.000005::numeric(38,12)), 'and is paid once');
select throws_ok($$select tests.on_job('retry_job', 'hard')$$, 'PT409', null, 'then there is nothing to try again');
select throws_ok($$select tests.on_job('retry_job', 'deaf')$$, 'PT409', null, 'nor after a cancellation');
create temp table again as select tests.on_job('retry_job', 'short') as j;
select is((j ->> 'state', (j ->> 'deadline_at')::timestamptz), ('assigned'::text, infernet.clock() + interval '30 seconds'), 'one that expired has its time anew') from again;
select is((tests.on_job('cancel_job', 'short') ->> 'state', tests.balance('alice', 'held')), ('cancelled'::text, 0::numeric), 'and can be cancelled');
-- It may fail again, and be tried again.
select tests.on_job('retry_job', 'final'), tests.start('n1', tests.attempt('final'), tests.id('final'));
select tests.as('n1', format('public.fail_attempt(%L, %L, ''engine_failed'', ''still broken'', false)', tests.attempt('final'), tests.id('final')));
select is((tests.failed('alice'), tests.books()), ('final moved'::text, 'whole'::text), 'what fails again is listed again');
select is(tests.on_job('retry_job', 'final') ->> 'state', 'assigned', 'and may be tried again');
select tests.start('n1', tests.attempt('final'), tests.id('final'));
select tests.as('n1', format('public.fail_attempt(%L, %L, ''engine_failed'', ''broken for good'', false)', tests.attempt('final'), tests.id('final')));
select is(tests.books(), 'whole', 'with a hold of its own each time');
-- Not without the money, the room, or the prompt.
select infernet.post_transfer(gen_random_uuid(), 'grant', array[infernet.account('available', tests.user('alice')), infernet.account('goodwill', null)], array[-v.b, v.b]) from (select tests.balance('alice') as b) v;
select throws_ok($$select tests.on_job('retry_job', 'moved')$$, 'PT402', null, 'it takes money');
select tests.credit('alice', 10), tests.limits('alice', 0, 0);
select throws_ok($$select tests.on_job('retry_job', 'moved')$$, 'PT429', null, 'and room');
select tests.limits('alice');
update public.job_contents set input = null where job_id = tests.id('moved');
select throws_ok($$select tests.on_job('retry_job', 'moved')$$, 'PT409', 'The prompt of this job has been deleted.', 'and its prompt');

select is((tests.on_job('discard_job', 'final') ->> 'state', tests.failed('alice')), ('failed'::text, 'moved'::text), 'a job is discarded: off the list');
select is(tests.on_job('get_job', 'final') #>> '{error,message}', 'broken for good', 'its record stays');
select throws_ok($$select tests.on_job('retry_job', 'final')$$, 'PT409', null, 'but it is not tried again');
select is(tests.on_job('discard_job', n.name) ->> 'state', n.state, n.state || ': nothing is lost by discarding it') from (values ('final', 'failed'), ('hard', 'completed'), ('deaf', 'cancelled')) as n (name, state);

create function tests.call(p_actor text, p_sql text) returns text
language plpgsql as $$
begin
  if p_actor = 'anon' then
    perform tests.be_role('anon');
  else
    perform tests.be(p_actor);
  end if;
  execute 'select public.' || p_sql;
  perform tests.be_nobody();
  return 'done';
exception when others then
  perform tests.be_nobody();
  return sqlstate;
end $$;
select is(tests.call(a.actor, format('%s(%L)', c.name, tests.id('moved'))), a.state, a.actor || ' may not ' || c.name)
from (values ('bob', 'PT404'), ('olga', 'PT404'), ('n1', 'PT401'), ('anon', '42501')) as a (actor, state), unnest('{get_job,cancel_job,retry_job,discard_job}'::text[]) c (name);
select is((tests.state('moved'), tests.failed('alice')), ('failed'::text, 'moved'::text), 'and nothing came of it');

select is((select count(*) from infernet.queue) + (select count(*) from infernet.live_attempts), 0::bigint, 'nothing is left waiting or running');
select is((tests.books(), tests.balance('alice', 'held') + tests.balance('bob', 'held') + tests.balance('chris', 'held') + tests.balance('zoe', 'held')), ('whole'::text, 0::numeric), 'the books are whole');
select * from finish();
rollback;
