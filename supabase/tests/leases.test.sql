-- Leases, retries, and what time alone causes: nodes that vanish, offers nobody starts, deadlines,
-- cancellations without an answer, our own outages.
begin;
\ir actors.psql
select plan(53);

select tests.set_clock('2026-11-01 12:00:00+00');
select tests.user('alice'), tests.credit('alice', 10);
select tests.node('n1', 'carol'), tests.node('n2', 'dave');
select infernet.tick();
-- Faults that make a pause are in nodes.test.sql.
update public.settings set value = '1000' where key = 'fault_limit';

create function tests.state(p_job uuid) returns text language sql as $$ select state::text from public.jobs where id = p_job $$;
create function tests.attempt(p_job uuid) returns uuid
language sql as $$ select id from public.job_attempts where job_id = p_job order by number desc limit 1 $$;
create function tests.runner(p_job uuid) returns text
language sql as $$ select provider_name from public.job_attempts where job_id = p_job order by number desc limit 1 $$;

-- ------------------------------------------------------------ a lost node
select tests.online('n1');
select tests.submit('alice', '00000000-0000-7000-8000-000000000001');
select tests.start('n1', tests.attempt('00000000-0000-7000-8000-000000000001'), '11111111-1111-4111-8111-111111111111');
select tests.pass_time('5 seconds'), infernet.tick();
select tests.as('n1', format('public.heartbeat(array[%L::uuid])', tests.attempt('00000000-0000-7000-8000-000000000001')));
select tests.pass_time('9 seconds'), infernet.tick();
select is(tests.state('00000000-0000-7000-8000-000000000001'), 'running', 'a heartbeat renews the lease of what a node runs');
select tests.online('n2');
select tests.pass_time('7 seconds'), infernet.tick();
select is(tests.runner('00000000-0000-7000-8000-000000000001'), 'n2', 'a node that is silent for a lease loses its job to another');
select is((select state::text from public.job_attempts where job_id = '00000000-0000-7000-8000-000000000001' and number = 1), 'lost', 'its attempt is lost');
select is((select status::text from public.providers where id = tests.subject('n1')), 'offline', 'and it is offline');
select is(tests.complete('n1', (select id from public.job_attempts where number = 1), '11111111-1111-4111-8111-111111111111') ->> 'reason', 'fenced',
  'its late result is fenced');
select is((select count(*) from public.ledger_transfers where kind = 'capture'), 0::bigint, 'and pays nothing');
select is(tests.as('n1', format('public.heartbeat(array[%L::uuid])', (select id from public.job_attempts where number = 1))) #>> '{lost,0}',
  (select id::text from public.job_attempts where number = 1), 'when it is back, it is told what it holds in vain');
select tests.start('n2', tests.attempt('00000000-0000-7000-8000-000000000001'), '22222222-2222-4222-8222-222222222222');
select is(tests.complete('n2', tests.attempt('00000000-0000-7000-8000-000000000001'), '22222222-2222-4222-8222-222222222222') ->> 'job_state', 'completed',
  'the second node completes the job');
select is((select count(*) from public.ledger_transfers where kind = 'capture'), 1::bigint, 'and one capture is made');

-- ------------------------------------------------------------ an offer that nobody starts
select tests.submit('alice', '00000000-0000-7000-8000-000000000002');
create temp table slow as select tests.runner('00000000-0000-7000-8000-000000000002') as node;
select tests.pass_time('2 seconds'), infernet.tick();
select is(tests.runner('00000000-0000-7000-8000-000000000002'), (select node from slow), 'an offer stands for three seconds');
select tests.as('n1', 'public.heartbeat()'), tests.as('n2', 'public.heartbeat()');
select tests.pass_time('2 seconds'), infernet.tick();
select isnt(tests.runner('00000000-0000-7000-8000-000000000002'), (select node from slow), 'then the job goes to the next node');
select is((select attempts from public.jobs where id = '00000000-0000-7000-8000-000000000002'), 2, 'and it counts as an attempt');
select tests.as('alice', 'public.cancel_job(''00000000-0000-7000-8000-000000000002'')');

-- ------------------------------------------------------------ failures
select tests.as('n2', 'public.leave()');
select is((select status::text from public.providers where id = tests.subject('n2')), 'offline', 'a node that leaves is offline');
select tests.submit('alice', '00000000-0000-7000-8000-000000000003');
select tests.start('n1', tests.attempt('00000000-0000-7000-8000-000000000003'), '11111111-1111-4111-8111-111111111111');
select is(tests.as('n1', format('public.fail_attempt(%L, %L, ''engine_failed'', ''It died.'')', tests.attempt('00000000-0000-7000-8000-000000000003'),
  '11111111-1111-4111-8111-111111111111')) ->> 'job_state', 'queued', 'a failed job waits for its retry on the only node');
select is(tests.as('alice', 'public.get_job(''00000000-0000-7000-8000-000000000003'')') #>> '{waiting,code}', 'retrying', 'and says so');
select tests.pass_time('3 seconds'), tests.as('n1', 'public.heartbeat()');
select is(tests.state('00000000-0000-7000-8000-000000000003'), 'assigned', 'after the delay the same node may try again');
select tests.start('n1', tests.attempt('00000000-0000-7000-8000-000000000003'), '11111111-1111-4111-8111-111111111112');
select tests.as('n1', format('public.fail_attempt(%L, %L, ''engine_failed'', ''It died.'')', tests.attempt('00000000-0000-7000-8000-000000000003'),
  '11111111-1111-4111-8111-111111111112'));
select tests.pass_time('5 seconds'), tests.as('n1', 'public.heartbeat()'), infernet.tick();
select tests.start('n1', tests.attempt('00000000-0000-7000-8000-000000000003'), '11111111-1111-4111-8111-111111111113');
select is(tests.as('n1', format('public.fail_attempt(%L, %L, ''engine_failed'', ''It died.'')', tests.attempt('00000000-0000-7000-8000-000000000003'),
  '11111111-1111-4111-8111-111111111113')) ->> 'job_state', 'failed', 'after the last attempt the job has failed');
select is(tests.as('alice', 'public.get_job(''00000000-0000-7000-8000-000000000003'')') -> 'error', '{"code":"engine_failed","message":"It died."}',
  'with the reason');
select is(tests.balance('alice', 'held'), 0::numeric, 'and its hold is given back');

select tests.submit('alice', '00000000-0000-7000-8000-000000000004');
select tests.start('n1', tests.attempt('00000000-0000-7000-8000-000000000004'), '11111111-1111-4111-8111-111111111111');
select is(tests.as('n1', format('public.fail_attempt(%L, %L, ''bad_request'', ''No such role.'')', tests.attempt('00000000-0000-7000-8000-000000000004'),
  '11111111-1111-4111-8111-111111111111')) ->> 'job_state', 'failed', 'the consumer''s own fault is not retried');

select tests.submit('alice', '00000000-0000-7000-8000-000000000005');
select tests.start('n1', tests.attempt('00000000-0000-7000-8000-000000000005'), '11111111-1111-4111-8111-111111111111');
select tests.online('n2');
select is(tests.as('n1', format('public.fail_attempt(%L, %L, ''shutdown'')', tests.attempt('00000000-0000-7000-8000-000000000005'),
  '11111111-1111-4111-8111-111111111111')) ->> 'job_state', 'assigned', 'a job handed back goes elsewhere at once');
select is((select attempts from public.jobs where id = '00000000-0000-7000-8000-000000000005'), 1, 'and the hand-back does not count');
select is(tests.runner('00000000-0000-7000-8000-000000000005'), 'n2', 'on another node');
select is(tests.as('n1', format('public.fail_attempt(%L, %L, ''engine_failed'')', (select id from public.job_attempts where job_id = '00000000-0000-7000-8000-000000000005' and number = 1),
  '11111111-1111-4111-8111-111111111111')) ->> 'accepted', 'false', 'a failure told late changes nothing');

-- ------------------------------------------------------------ a restarted agent
select tests.start('n2', tests.attempt('00000000-0000-7000-8000-000000000005'), '22222222-2222-4222-8222-222222222222');
select tests.as('n2', 'public.heartbeat()');
select is(tests.state('00000000-0000-7000-8000-000000000005'), 'running', 'a young attempt that a heartbeat does not name is spared');
select tests.as('n2', 'public.claim_attempts(p_restart => true)');
select is(tests.state('00000000-0000-7000-8000-000000000005'), 'queued', 'what a restarted agent does not name is taken back at once');
select tests.pass_time('3 seconds'), tests.as('n2', 'public.leave()'), infernet.tick();
select is(tests.runner('00000000-0000-7000-8000-000000000005'), 'n1', 'and goes elsewhere');
select tests.start('n1', tests.attempt('00000000-0000-7000-8000-000000000005'), '11111111-1111-4111-8111-111111111119');
select tests.pass_time('11 seconds'), tests.as('n1', 'public.heartbeat()');
select is(tests.state('00000000-0000-7000-8000-000000000005'), 'queued', 'an attempt that its node has forgotten is lost');
select is((select error_code from public.job_attempts where id = tests.attempt('00000000-0000-7000-8000-000000000005')), 'node_restarted', 'and says why');
select tests.as('alice', 'public.cancel_job(''00000000-0000-7000-8000-000000000005'')');

-- ------------------------------------------------------------ deadlines and cancellations
select tests.as('n1', 'public.leave()'), tests.as('n2', 'public.leave()');
select is(tests.as('alice', $$public.submit_job('00000000-0000-7000-8000-000000000006', 'm', '{"prompt":"x"}', 'completion', p_deadline_secs => 30)$$)
  #>> '{waiting,code}', 'no_node_online', 'with no node online the job waits');
select tests.pass_time('31 seconds'), infernet.tick();
select is(tests.state('00000000-0000-7000-8000-000000000006'), 'expired', 'until its deadline');
select is(tests.balance('alice', 'held'), 0::numeric, 'and costs nothing');
select tests.online('n1');
select tests.as('alice', $$public.submit_job('00000000-0000-7000-8000-000000000007', 'm', '{"prompt":"x"}', 'completion', p_deadline_secs => 12)$$);
select tests.start('n1', tests.attempt('00000000-0000-7000-8000-000000000007'), '11111111-1111-4111-8111-111111111111');
select tests.pass_time('9 seconds'), tests.as('n1', format('public.heartbeat(array[%L::uuid])', tests.attempt('00000000-0000-7000-8000-000000000007')));
select tests.pass_time('4 seconds'), infernet.tick();
select is(tests.state('00000000-0000-7000-8000-000000000007'), 'expired', 'a job that runs past its deadline ends');
select is((select infernet.busy(o.id) from infernet.offer_load l join public.offers o on o.id = l.offer_id where o.provider_id = tests.subject('n1')), 0, 'and frees its slot');

select tests.submit('alice', '00000000-0000-7000-8000-000000000008');
select tests.start('n1', tests.attempt('00000000-0000-7000-8000-000000000008'), '11111111-1111-4111-8111-111111111111');
select tests.as('alice', 'public.cancel_job(''00000000-0000-7000-8000-000000000008'')');
select tests.pass_time('9 seconds'), infernet.tick();
select is(tests.state('00000000-0000-7000-8000-000000000008'), 'cancelling', 'a node has ten seconds to answer a cancellation');
select tests.as('n1', format('public.heartbeat(array[%L::uuid])', tests.attempt('00000000-0000-7000-8000-000000000008')));
select tests.pass_time('2 seconds'), infernet.tick();
select is(tests.state('00000000-0000-7000-8000-000000000008'), 'cancelled', 'then the job is cancelled without it');
select is((select cost from public.jobs where id = '00000000-0000-7000-8000-000000000008'), null, 'and free');

-- ------------------------------------------------------------ outages of our own
select tests.node('n3', 'carol'), tests.node('n4', 'carol');
select tests.online('n1'), tests.online('n2'), tests.online('n3');
select infernet.tick();
select tests.submit('alice', '00000000-0000-7000-8000-000000000009');
create temp table spared as select tests.runner('00000000-0000-7000-8000-000000000009') as node;
select tests.start(node, tests.attempt('00000000-0000-7000-8000-000000000009'), '33333333-3333-4333-8333-333333333333') from spared;
select tests.pass_time('1 hour'), infernet.tick();
select is(tests.state('00000000-0000-7000-8000-000000000009'), 'expired', 'a deadline that passed in our outage has passed');
select tests.as('alice', $$public.submit_job('00000000-0000-7000-8000-00000000000a', 'm', '{"prompt":"x"}', 'completion', p_deadline_secs => 7200)$$);
select tests.online('n1'), tests.online('n2'), tests.online('n3'), infernet.tick();
create temp table long as select tests.runner('00000000-0000-7000-8000-00000000000a') as node;
select tests.start(node, tests.attempt('00000000-0000-7000-8000-00000000000a'), '33333333-3333-4333-8333-333333333333') from long;
select tests.pass_time('16 seconds'), infernet.tick();
select tests.pass_time('1 hour');
select infernet.tick();
select is(tests.state('00000000-0000-7000-8000-00000000000a'), 'running', 'after an outage of our own leases are spared');
select tests.as(node, format('public.heartbeat(array[%L::uuid])', tests.attempt('00000000-0000-7000-8000-00000000000a'))) from long;
select tests.pass_time('5 seconds'), infernet.tick();
select is((select count(*) from public.job_attempts where job_id = '00000000-0000-7000-8000-00000000000a'), 1::bigint, 'its node goes on with it');
select tests.pass_time('8 seconds'), infernet.tick(), tests.pass_time('8 seconds'), infernet.tick();
select isnt(tests.state('00000000-0000-7000-8000-00000000000a'), 'running', 'once: a node that stays away afterwards is lost');
select tests.as('alice', 'public.cancel_job(''00000000-0000-7000-8000-00000000000a'')');

select tests.online('n1'), tests.online('n2'), tests.online('n3'), tests.online('n4'), infernet.tick();
select tests.submit('alice', '00000000-0000-7000-8000-00000000000b');
select tests.pass_time('7 seconds'), infernet.tick();
select tests.as('n4', 'public.heartbeat()');
select tests.pass_time('9 seconds'), infernet.tick();
select is((select count(*) from public.providers where status <> 'offline'), 4::bigint, 'when more than half vanish together, it is us');
select tests.as('n4', 'public.heartbeat()'), tests.pass_time('8 seconds'), infernet.tick();
select tests.as('n4', 'public.heartbeat()'), tests.pass_time('8 seconds'), infernet.tick();
select is((select count(*) from public.providers where status <> 'offline'), 1::bigint, 'but only for the time of one lease');

-- ------------------------------------------------------------ who gets work
select tests.as('n4', 'public.leave()');
select tests.node('n5', 'carol', 'pending'), tests.online('n5');
select is(tests.as('alice', $$public.submit_job(gen_random_uuid(), 'm', '{"prompt":"x"}', 'completion', p_max_cost => 1)$$) ->> 'state', 'queued', 'a pending node gets no work');
select tests.operator('olga');
select is(tests.as('olga', format('public.set_node_approval(%L, ''approved'')', tests.subject('n5'))) ->> 'approval', 'approved', 'an operator approves it');
select infernet.tick();
select is((select count(*) from public.job_attempts where provider_name = 'n5'), 1::bigint, 'and it does');
select tests.as('olga', format('public.set_node_approval(%L, ''suspended'')', tests.subject('n5')));
select throws_ok($$select tests.as('n5', 'public.heartbeat()')$$, 'PT403', 'Node n5 is suspended.', 'a suspended node is told');
select tests.pass_time('4 seconds'), infernet.tick();
select tests.online('n1', 1, 3, 3), tests.online('n2', 1, 1, 1), tests.online('n3', 1, 2, 2);
select tests.as('alice', format('public.cancel_job(%L)', j.id)) from public.jobs j where j.state in ('queued', 'assigned');
select is(tests.runner((tests.submit('alice', gen_random_uuid(), 100, 1) ->> 'id')::uuid), 'n2', 'the cheapest node is chosen');
select is(tests.runner((tests.submit('alice', gen_random_uuid(), 100, 1) ->> 'id')::uuid), 'n3', 'then the next');
select is(tests.runner((tests.submit('alice', gen_random_uuid(), 100, 1) ->> 'id')::uuid), 'n1', 'then the dearest');
select is(tests.submit('alice', gen_random_uuid(), 100, 1) #>> '{waiting,code}', 'all_busy', 'then the job waits');

select ok((infernet.prove_ledger() ->> 'ok')::boolean, 'the books are whole: ' || (infernet.prove_ledger() ->> 'faults'));
select set_eq('select attempt_id from infernet.live_attempts', $$select id from public.job_attempts where state in ('offered', 'running')$$,
  'each attempt that is offered or running takes a slot, and no other');
select * from finish();
rollback;
