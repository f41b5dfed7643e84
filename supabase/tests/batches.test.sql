-- Batches: submitted in one call with one hold, given out in bulk, their progress, their results, cancelled as a
-- whole; and what is refused.
begin;
\ir actors.psql
select no_plan();

select tests.set_clock('2026-11-01 12:00:00+00');
select tests.user('alice'), tests.user('bob'), tests.credit('alice', 100), tests.operator('olga');
select tests.node('n1', 'carol'), tests.node('n2', 'dave');
select tests.online('n1', 4);

create function tests.items(p_count int, p_text text default 'hello') returns jsonb
language sql as $$
  select jsonb_agg(jsonb_build_object('messages', jsonb_build_array(jsonb_build_object('role', 'user', 'content', p_text || n))))
  from generate_series(1, p_count) n
$$;
create function tests.batch(p_name text, p_id uuid, p_items jsonb, p_more text default '') returns jsonb
language sql as $$ select tests.as(p_name, format('public.submit_batch(%L, ''m'', %L, p_max_tokens => 100%s)', p_id, p_items, p_more)) $$;
create function tests.claim_all(p_node text) returns uuid[]
language sql as $$
  select array_agg((a ->> 'attempt')::uuid) from jsonb_array_elements(tests.as(p_node, 'public.claim_attempts()') -> 'attempts') a
$$;
create function tests.start_all(p_node text, p_attempts uuid[]) returns jsonb
language sql as $$
  select tests.as(p_node, format('public.start_attempts(%L, %L)', p_attempts, array_fill('11111111-1111-4111-8111-111111111111'::uuid, array[cardinality(p_attempts)])))
$$;
create function tests.result(p_attempt uuid, p_lease uuid default '11111111-1111-4111-8111-111111111111') returns jsonb
language sql as $$
  select jsonb_build_object('attempt', p_attempt, 'lease', p_lease, 'output', 'hello world', 'finish', 'stop',
    'usage', '{"input_tokens": 5, "output_tokens": 2}'::jsonb, 'receipt', tests.receipt(p_attempt, 'hello world', 'stop', 5, 2))
$$;
create function tests.complete_all(p_node text, p_attempts uuid[]) returns jsonb
language sql as $$
  select tests.as(p_node, format('public.complete_attempts(%L)', (select jsonb_agg(tests.result(a)) from unnest(p_attempts) a)))
$$;

-- ------------------------------------------------------------ one batch, from end to end
create temp table b as select tests.batch('alice', '00000000-0000-7000-8000-0000000000b1', tests.items(10)) as j;
select is(j ->> 'items', '10', 'a batch is taken') from b;
select is(j -> 'states', '{"queued": 10}', 'its jobs wait') from b;
select is(j ->> 'created', 'true', 'it is new') from b;
select is((j ->> 'held')::numeric, tests.balance('alice', 'held'), 'their caps are held') from b;
select is((select count(*) from public.ledger_holds), 1::bigint, 'in one hold');
select is((select count(*) from public.ledger_transfers where kind = 'hold'), 1::bigint, 'by one transfer');
select is(tests.batch('alice', '00000000-0000-7000-8000-0000000000b1', tests.items(10)) ->> 'created', 'false', 'a repeat answers the same batch');
select throws_ok($$select tests.batch('alice', '00000000-0000-7000-8000-0000000000b1', tests.items(9))$$, 'PT409', null, 'other content under its id is refused');
select throws_ok($$select tests.batch('bob', '00000000-0000-7000-8000-0000000000b1', tests.items(10))$$, 'PT409', null, 'and somebody else''s');
select throws_ok($$select tests.as('bob', 'public.get_batch(''00000000-0000-7000-8000-0000000000b1'')')$$, 'PT404', null, 'who does not see it either');

create temp table claimed as select tests.claim_all('n1') as ids;
select is(cardinality(ids), 4, 'a node fills all its slots in one call') from claimed;
select is((select array_agg(j.batch_item order by j.batch_item) from public.jobs j where j.state = 'assigned'), array[1, 2, 3, 4], 'in the order of the items');
create temp table started as select tests.start_all('n1', ids) -> 'started' as s from claimed;
select is(jsonb_array_length(s), 4, 'it starts them in one call') from started;
select is(s #>> '{0,input,messages,0,content}', 'hello1', 'each with its input') from started;
select is(tests.start_all('n1', ids) -> 'started', s, 'a repeated start answers the same') from claimed, started;
select is(tests.as('n1', format('public.start_attempts(%L, array[gen_random_uuid()])', ids[1:1])) #>> '{started,0,refused}', 'not_yours', 'under another lease it is refused') from claimed;
select tests.pass_time('1 second');
create temp table done as select tests.complete_all('n1', ids) -> 'results' as d from claimed;
select is((select count(*) from done, jsonb_array_elements(d) r where (r ->> 'accepted')::boolean and r ->> 'job_state' = 'completed'), 4::bigint, 'and completes them in one call');
select is((select count(distinct r #>> '{next,attempt}') from done, jsonb_array_elements(d) r), 4::bigint, 'whose answer names the next ones');
select is((select sum((r ->> 'earned')::numeric) from done, jsonb_array_elements(d) r), 4 * 0.00000855, 'each is paid');
select is(tests.balance('carol', 'earned'), 4 * 0.00000855, 'to the owner');
select is((select count(*) from public.ledger_transfers where kind = 'capture'), 4::bigint, 'by a capture each');
select is(tests.complete_all('n1', ids) #>> '{results,3,reason}', 'repeated', 'a repeat is answered') from claimed;
select is(tests.complete_all('n1', ids) #> '{results,3,usage}', d #> '{3,usage}', 'with the same usage') from claimed, done;
select is((select count(*) from public.ledger_transfers where kind = 'capture'), 4::bigint, 'and paid nothing');
select ok((infernet.prove_ledger() ->> 'ok')::boolean, 'the books are whole: ' || (infernet.prove_ledger() ->> 'faults'));

create temp table progress as select tests.as('alice', 'public.get_batch(''00000000-0000-7000-8000-0000000000b1'', 1, 3)') as p;
select is(p ->> 'done', '4', 'progress is told') from progress;
select is(p -> 'states', '{"completed": 4, "assigned": 4, "queued": 2}', 'by state') from progress;
select is((p ->> 'cost')::numeric, 4 * 0.000009, 'with the cost so far') from progress;
select is(p #>> '{results,0,item}', '2', 'results come by item') from progress;
select is(p #>> '{results,0,output}', 'hello world', 'those that there are') from progress;
select is(p #>> '{results,2,item}', '4', 'a page at a time') from progress;

-- ------------------------------------------------------------ what is no result, and what came late
create temp table second as select array(select attempt_id from infernet.live_attempts) as ids;
select tests.start_all('n1', ids) from second;
select tests.pass_time('1 second');
select throws_ok($$select tests.as('n1', format('public.complete_attempts(%L)', (select jsonb_agg(tests.result(a) || case when n = 2 then '{"output": "other"}'::jsonb else '{}' end)
  from second, unnest(ids) with ordinality as u (a, n))))$$, 'PT422', 'The receipt says another output_sha256.', 'one wrong result refuses the call');
select is((select count(*) from public.jobs where state = 'running'), 4::bigint, 'and changes nothing of the others');
select throws_ok($$select tests.as('n1', format('public.complete_attempts(%L)', (select jsonb_build_array(tests.result(ids[1]), tests.result(ids[1])) from second)))$$,
  'PT404', null, 'naming one twice is refused');
select is((tests.as('n1', format('public.complete_attempts(%L)', jsonb_build_array(tests.result(ids[1], '22222222-2222-4222-8222-222222222222')))) #>> '{results,0,reason}'),
  'fenced', 'a result under another lease is fenced') from second;
select throws_ok($$select tests.complete_all('n2', (select ids from second))$$, 'PT404', null, 'another node cannot complete them');

-- ------------------------------------------------------------ cancelled as a whole
create temp table stopped as select tests.as('alice', 'public.cancel_batch(''00000000-0000-7000-8000-0000000000b1'')') as c;
select is(c -> 'states', '{"completed": 4, "cancelling": 4, "cancelled": 2}', 'what waits ends at once, what runs is told to stop') from stopped;
select is((select count(*) from second, jsonb_array_elements(tests.as('n1', format('public.heartbeat(%L)', ids)) -> 'cancel')), 4::bigint, 'the node hears of each');
select is(tests.as('alice', 'public.cancel_batch(''00000000-0000-7000-8000-0000000000b1'')') - 'states', c - 'states', 'a repeat changes nothing') from stopped;
select tests.as('n1', format('public.complete_attempts(%L)', (select jsonb_agg(jsonb_build_object('attempt', a, 'lease', '11111111-1111-4111-8111-111111111111',
  'output', 'hel', 'finish', 'cancelled', 'usage', '{"input_tokens": 5, "output_tokens": 1}'::jsonb, 'receipt', tests.receipt(a, 'hel', 'cancelled', 5, 1))) from second, unnest(ids) a)));
select is(tests.as('alice', 'public.get_batch(''00000000-0000-7000-8000-0000000000b1'')') -> 'states', '{"completed": 4, "cancelled": 6}', 'what was delivered until then is paid');
select is(tests.balance('alice', 'held'), 0::numeric, 'and nothing is held any more');
select is(tests.balance('alice'), 100 - 4 * 0.000009 - 4 * 0.000007, 'the consumer paid what was delivered');
select isnt((select closed_at from public.ledger_holds), null, 'the hold is closed');
select ok((infernet.prove_ledger() ->> 'ok')::boolean, 'the books are whole: ' || (infernet.prove_ledger() ->> 'faults'));
select isnt(tests.as('alice', 'public.get_batch(''00000000-0000-7000-8000-0000000000b1'')') ->> 'ended_at', null, 'it has ended');
select is(tests.as('alice', 'public.list_batches()') #>> '{batches,0,id}', '00000000-0000-7000-8000-0000000000b1', 'it is in the list');
select is(tests.as('bob', 'public.list_batches()') -> 'batches', '[]', 'of its consumer alone');

-- ------------------------------------------------------------ an item that fails
select tests.batch('alice', '00000000-0000-7000-8000-0000000000b2', tests.items(2));
create temp table third as select tests.claim_all('n1') as ids;
select tests.start_all('n1', ids) from third;
select tests.pass_time('1 second');
select tests.as('n1', format('public.fail_attempt(%L, %L, ''bad_request'', ''No.'')', ids[1], '11111111-1111-4111-8111-111111111111')),
       tests.complete_all('n1', ids[2:2]) from third;
select is(tests.as('alice', 'public.get_batch(''00000000-0000-7000-8000-0000000000b2'')') -> 'states', '{"failed": 1, "completed": 1}', 'one item may fail alone');
select is(tests.as('alice', 'public.failed_jobs()') #>> '{jobs,0,batch}', '00000000-0000-7000-8000-0000000000b2', 'it is in the list of failed jobs');
select is(tests.as('alice', format('public.retry_job(%L)', (select job_id from infernet.failed_jobs))) ->> 'state', 'assigned', 'and can be tried again');
select ok((infernet.prove_ledger() ->> 'ok')::boolean, 'with a hold of its own: ' || (infernet.prove_ledger() ->> 'faults'));
select tests.as('alice', 'public.cancel_batch(''00000000-0000-7000-8000-0000000000b2'')');

-- ------------------------------------------------------------ refusals
select throws_ok($$select tests.batch('alice', gen_random_uuid(), '[]')$$, 'PT422', null, 'an empty batch is refused');
select throws_ok($$select tests.batch('alice', gen_random_uuid(), '{}')$$, 'PT422', null, 'so is what is no array');
select throws_ok($$select tests.batch('alice', gen_random_uuid(), tests.items(2) || '[{"messages":[]}]')$$, 'PT422', 'Item 3: The prompt is empty.', 'a refusal names the item');
update public.settings set value = '5' where key = 'batch_items';
select throws_ok($$select tests.batch('alice', gen_random_uuid(), tests.items(6))$$, 'PT422', null, 'so is one that is too long');
update public.settings set value = '10000' where key = 'batch_items';
update public.settings set value = '5' where key = 'queued_limit';
select throws_ok($$select tests.batch('alice', gen_random_uuid(), tests.items(6))$$, 'PT429', null, 'or has more jobs than may wait');
update public.settings set value = '20000' where key = 'queued_limit';
select throws_ok($$select tests.batch('bob', gen_random_uuid(), tests.items(2))$$, 'PT402', null, 'and one that cannot be paid');
select throws_ok($$select tests.batch('alice', gen_random_uuid(), tests.items(2), ', p_max_cost => 0.0000001')$$, 'PT422', null, 'a cap below every offer is refused');
select is((select count(*) from public.batches), 2::bigint, 'nothing is left of what was refused');

select tests.submit('alice', '00000000-0000-7000-8000-0000000000b9', p_max_tokens => 10);
select throws_ok($$select tests.batch('alice', '00000000-0000-7000-8000-0000000000b9', tests.items(2))$$, 'PT409', 'This id has been used before.', 'the id of a job is no id for a batch');
select throws_ok($$select tests.submit('alice', '00000000-0000-7000-8000-0000000000b1')$$, 'PT409', 'This id has been used before.', 'nor the other way round');
select tests.as('alice', 'public.cancel_job(''00000000-0000-7000-8000-0000000000b9'')');
select ok((infernet.prove_ledger() ->> 'ok')::boolean, 'the books are whole: ' || (infernet.prove_ledger() ->> 'faults'));

-- ------------------------------------------------------------ the tick gives it out, and wakes each node once
select tests.online('n2', 6);
select tests.batch('alice', '00000000-0000-7000-8000-0000000000b3', tests.items(12));
create temp table before as select count(*) as n from realtime.messages;
select is(infernet.tick() ->> 'dispatched', '10', 'the tick fills what is free');
select is((select count(*) - n from realtime.messages, before group by n), 2::bigint, 'with one message a node');
select is((select count(*) from infernet.queue), 2::bigint, 'the rest waits');
select tests.as('alice', 'public.cancel_batch(''00000000-0000-7000-8000-0000000000b3'')');

-- ------------------------------------------------------------ ten thousand
create temp table watch as select clock_timestamp() as at;
select is(tests.batch('alice', '00000000-0000-7000-8000-0000000000b4', tests.items(10000), ', p_max_cost => 0.001') -> 'states', '{"queued": 10000}', 'ten thousand items are taken');
select cmp_ok(extract(epoch from clock_timestamp() - at)::numeric, '<', 8::numeric, 'within the statement timeout of authenticated') from watch;
update watch set at = clock_timestamp();
select is(tests.as('alice', 'public.cancel_batch(''00000000-0000-7000-8000-0000000000b4'')') -> 'states', '{"cancelled": 10000}', 'and cancelled');
select cmp_ok(extract(epoch from clock_timestamp() - at)::numeric, '<', 8::numeric, 'within it, too') from watch;
select ok((infernet.prove_ledger() ->> 'ok')::boolean, 'the books are whole: ' || (infernet.prove_ledger() ->> 'faults'));
select is((select count(*) from infernet.queue), 0::bigint, 'nothing waits');
select * from finish();
rollback;
