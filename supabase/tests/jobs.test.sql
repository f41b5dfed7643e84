-- The life of a job: submitted, assigned, started, completed, settled; repeated, refused, cancelled.
begin;
\ir actors.psql
select plan(61);

select tests.operator('olga');
select tests.user('alice'), tests.user('bob');
select tests.node('n1', 'carol'), tests.node('n2', 'dave');
select tests.credit('alice', 10);

-- ------------------------------------------------------------ before there is an offer
select throws_ok($$select tests.submit('alice')$$, 'PT404', 'Model m is not known here.', 'an unknown model is refused');
select tests.online('n1');
update public.offers set enabled = false;
select throws_ok($$select tests.submit('alice')$$, 'PT422', 'Nobody offers m yet, so there is no price.', 'without an offer there is no price');
select is(tests.submit('alice', '00000000-0000-7000-8000-000000000001', 100, 0.5) #>> '{waiting,code}', 'no_node_online',
  'with a maximum cost the job waits, and says for what');
select is(tests.as('alice', 'public.cancel_job(''00000000-0000-7000-8000-000000000001'')') ->> 'state', 'cancelled', 'a waiting job is cancelled at once');
select is(tests.balance('alice'), 10::numeric, 'and costs nothing');

-- ------------------------------------------------------------ one job
select tests.online('n1');
create temp table job as select tests.submit('alice', '00000000-0000-7000-8000-000000000002') as j;
select is(j ->> 'state', 'assigned', 'a free node gets the job within the submit') from job;
select is(j ->> 'created', 'true', 'and it is new') from job;
select is(j #>> '{attempt,node,name}', 'n1', 'the consumer is told which node') from job;
select is(j ->> 'topic', 'job:' || tests.user('alice') || ':00000000-0000-7000-8000-000000000002', 'and which topic') from job;
select is((j ->> 'held')::numeric, tests.balance('alice', 'held'), 'its cap is held') from job;
select is(tests.submit('alice', '00000000-0000-7000-8000-000000000002') ->> 'created', 'false', 'a repeat answers the same job');
select throws_ok($$select tests.submit('alice', '00000000-0000-7000-8000-000000000002', 101)$$, 'PT409', null, 'other content under the same id is refused');
select tests.credit('bob', 10);
select throws_ok($$select tests.submit('bob', '00000000-0000-7000-8000-000000000002')$$, 'PT409', null, 'and so is somebody else''s');
select throws_ok($$select tests.as('bob', 'public.get_job(''00000000-0000-7000-8000-000000000002'')')$$, 'PT404', null, 'a stranger does not see it');

create temp table attempt as select (j #>> '{attempt,id}')::uuid as id, gen_random_uuid() as lease from job;
select throws_ok(format('select tests.start(%L, %L, %L)', 'n2', id, lease), 'PT404', null, 'another node cannot start it') from attempt;
select is(tests.start('n1', id, lease) #>> '{input,messages,0,content}', 'hello', 'its node starts it and gets the input') from attempt;
select is(tests.start('n1', id, lease) ->> 'lease', lease::text, 'a repeated start with the same lease answers the same') from attempt;
select throws_ok(format('select tests.start(%L, %L, %L)', 'n1', id, gen_random_uuid()), 'PT409', 'This attempt runs under another lease.',
  'a second agent with the same key is refused') from attempt;
select is((select state::text from public.jobs where id = '00000000-0000-7000-8000-000000000002'), 'running', 'the job runs');

select is(tests.complete('n1', id, gen_random_uuid()) ->> 'reason', 'fenced', 'a completion under another lease is fenced') from attempt;
select is((select count(*) from infernet.late_results), 1::bigint, 'and kept as evidence');
select throws_ok(format($q$select tests.as('n1', format('public.complete_attempt(%%L, %%L, %%L, %%L, %%L, %%L)', %L, %L, 'x', 'stop', '{"input_tokens":1,"output_tokens":1}', '{}'))$q$, id, lease),
  'PT422', 'The receipt is no signed event of this node.', 'a completion without a receipt is refused') from attempt;
select throws_ok(format($q$select tests.as('n1', format('public.complete_attempt(%%L, %%L, %%L, %%L, %%L, %%L)', %L, %L, 'other', 'stop', '{"input_tokens":5,"output_tokens":2}', %L))$q$,
  id, lease, tests.receipt(id, 'hello', 'stop', 5, 2)), 'PT422', 'The receipt says another output_sha256.', 'a receipt for another output is refused') from attempt;
select throws_ok(format('select tests.complete(%L, %L, %L, %L, %L)', 'n1', id, lease, 'x', 'cancelled'), 'PT409', null,
  'a node cannot cancel by itself') from attempt;
create temp table done as select tests.complete('n1', id, lease) as d from attempt;
select is(d ->> 'accepted', 'true', 'the completion is accepted') from done;
select is(d ->> 'job_state', 'completed', 'the job is completed') from done;
select is((d ->> 'earned')::numeric, 0.00000855, 'the owner earns the cost less the fee: (5 x 1 + 2 x 2) / 1e6 x 0.95') from done;
select is(tests.balance('carol', 'earned'), 0.00000855, 'on the owner''s account');
select is(tests.balance('alice'), 10 - 0.000009, 'the consumer paid what was delivered');
select is(tests.balance('alice', 'held'), 0::numeric, 'and nothing is held');
select is((select sum(balance) from public.ledger_accounts where kind = 'fee'), 0.00000045, 'the fee takes the rest');
select is(tests.complete('n1', id, lease) ->> 'reason', 'repeated', 'a repeated completion is answered') from attempt;
select is((select count(*) from public.ledger_transfers where kind = 'capture'), 1::bigint, 'and captures nothing more');
select is(tests.as('alice', 'public.get_job(''00000000-0000-7000-8000-000000000002'')') ->> 'output', 'hello world', 'the consumer reads the output');
select is(tests.as('alice', 'public.cancel_job(''00000000-0000-7000-8000-000000000002'')') ->> 'state', 'completed', 'cancelling an ended job changes nothing');
select ok((infernet.prove_ledger() ->> 'ok')::boolean, 'the books are whole: ' || (infernet.prove_ledger() ->> 'faults'));

-- ------------------------------------------------------------ usage beyond the bound is paid at the bound
create temp table greedy as select (tests.submit('alice', '00000000-0000-7000-8000-000000000003') #>> '{attempt,id}')::uuid as id, gen_random_uuid() as lease;
select tests.start('n1', id, lease) from greedy;
select tests.pass_time('10 seconds');
select is(tests.complete('n1', id, lease, 'abc', 'stop', 1000000, 1000000) -> 'usage',
  jsonb_build_object('input_tokens', (select input_bound from public.jobs where id = '00000000-0000-7000-8000-000000000003'), 'output_tokens', 3),
  'more tokens than bytes are not paid') from greedy;
create temp table fast as select (tests.submit('alice', '00000000-0000-7000-8000-000000000004') #>> '{attempt,id}')::uuid as id, gen_random_uuid() as lease;
select tests.start('n1', id, lease) from fast;
select is(tests.complete('n1', id, lease, repeat('a', 500), 'stop', 5, 500) #>> '{usage,output_tokens}', '0',
  'nor is output that cannot have been made in the time') from fast;
select ok((infernet.prove_ledger() ->> 'ok')::boolean, 'the books are whole');

-- ------------------------------------------------------------ queue: the next job goes with the completion
create temp table first as select (tests.submit('alice', '00000000-0000-7000-8000-000000000005') #>> '{attempt,id}')::uuid as id, gen_random_uuid() as lease;
select is(tests.submit('alice', '00000000-0000-7000-8000-000000000006') #>> '{waiting,code}', 'all_busy', 'a second job waits for the one slot');
select tests.start('n1', id, lease) from first;
create temp table next as select tests.complete('n1', id, lease) -> 'next' as n from first;
select is(n ->> 'job', '00000000-0000-7000-8000-000000000006', 'and is returned by the completion of the first') from next;

-- ------------------------------------------------------------ cancel
select is(tests.as('alice', 'public.cancel_job(''00000000-0000-7000-8000-000000000006'')') ->> 'state', 'cancelled', 'an assigned job is cancelled at once');
select is((select infernet.busy(l.offer_id) from infernet.offer_load l), 0, 'its slot is free');
select throws_ok(format('select tests.start(%L, %L, %L)', 'n1', n ->> 'attempt', gen_random_uuid()), 'PT409', 'This attempt is cancelled.',
  'and its node cannot start it any more') from next;
create temp table cut as select (tests.submit('alice', '00000000-0000-7000-8000-000000000007') #>> '{attempt,id}')::uuid as id, gen_random_uuid() as lease;
select tests.start('n1', id, lease) from cut;
select tests.pass_time('1 second');
select is(tests.as('alice', 'public.cancel_job(''00000000-0000-7000-8000-000000000007'')') ->> 'state', 'cancelling', 'a running job is told to stop');
select is(tests.as('n1', 'public.heartbeat(array[' || quote_literal(id) || '::uuid])') #>> '{cancel,0}', id::text, 'the heartbeat says so too') from cut;
select is(tests.complete('n1', id, lease, 'partly', 'cancelled', 5, 1) ->> 'job_state', 'cancelled', 'its node hands in what it has') from cut;
select is((select cost from public.jobs where id = '00000000-0000-7000-8000-000000000007'), 0.000007, 'which is paid');
create temp table read as select (tests.submit('alice', '00000000-0000-7000-8000-000000000008') #>> '{attempt,id}')::uuid as id, gen_random_uuid() as lease;
select tests.start('n1', id, lease) from read;
select tests.pass_time('1 second');
select tests.as('alice', 'public.cancel_job(''00000000-0000-7000-8000-000000000008'')');
select is(tests.complete('n1', id, lease, 'all of it', 'stop', 5, 4) ->> 'accepted', 'true', 'a stream read to its end and then cut is paid in full') from read;
select is((select cost from public.jobs where id = '00000000-0000-7000-8000-000000000008'), 0.000013, 'to the last token');
select is((select state::text from public.jobs where id = '00000000-0000-7000-8000-000000000008'), 'cancelled', 'though it was cancelled');

-- ------------------------------------------------------------ bad input
select throws_ok($$select tests.as('alice', 'public.submit_job(gen_random_uuid(), ''m'', ''{"messages":[{"role":"user","content":"  "}]}'')')$$,
  'PT422', 'The prompt is empty.', 'an empty prompt is refused');
select throws_ok(format($$select tests.as('alice', %L)$$, format('public.submit_job(gen_random_uuid(), %L, %L)', 'm',
  jsonb_build_object('messages', jsonb_build_array(jsonb_build_object('role', 'user', 'content', repeat('x', 262144)))))),
  'PT413', null, 'a prompt beyond the limit is refused');
select throws_ok($$select tests.submit('alice', gen_random_uuid(), 100, 0.0000001)$$, 'PT422', null, 'a cap below every offer is refused');
select throws_ok($$select tests.submit('alice', gen_random_uuid(), 0)$$, 'PT422', null, 'no tokens are refused');
select throws_ok($$select tests.submit('dave')$$, 'PT402', null, 'without money a job is refused');
select throws_ok($$select tests.as('alice', 'public.submit_job(gen_random_uuid(), ''m'', ''{"messages":[],"n":3}'')')$$,
  'PT422', 'The input has a key that is not taken here: n.', 'unknown keys are refused by name');
select throws_ok($$select tests.submit('n1')$$, 'PT401', 'This call needs a signed-in user.', 'a node is no consumer');
update public.users set status = 'suspended' where id = tests.user('alice');
select throws_ok($$select tests.submit('alice')$$, 'PT403', 'This account is suspended.', 'a suspended consumer is refused');

select ok((infernet.prove_ledger() ->> 'ok')::boolean, 'the books are whole: ' || (infernet.prove_ledger() ->> 'faults'));
select is((select count(*) from infernet.live_attempts), 0::bigint, 'no slot is left taken');
select * from finish();
rollback;
