-- The life of a job told: each transition with its cause, the offers that were seen, each attempt, each line of
-- the ledger; and that a history which was touched is found.
begin;
\ir actors.psql
select no_plan();

select tests.set_clock('2026-11-01 12:00:00+00');
select tests.operator('olga'), tests.user('alice'), tests.user('bob'), tests.credit('alice', 10), tests.credit('bob', 10);
select tests.node('attic', 'carol'), tests.node('barn', 'dave'), tests.node('cellar', 'carol');
select infernet.tick();

create function tests.explain(p_name text, p_job uuid) returns jsonb
language sql as $$ select tests.as(p_name, format('public.explain_job(%L)', p_job)) $$;
-- The sentences of a job's story, a line each.
create function tests.story(p_job uuid, p_name text default 'alice') returns text
language sql as $$ select string_agg(s ->> 'what', e'\n' order by n) from jsonb_array_elements(tests.explain(p_name, p_job) -> 'story') with ordinality as e (s, n) $$;
create function tests.causes(p_job uuid) returns text
language sql as $$ select string_agg((s ->> 'event') || ':' || (s ->> 'cause'), ' ' order by n) from jsonb_array_elements(tests.explain('alice', p_job) -> 'story') with ordinality as e (s, n) $$;
create function tests.attempt(p_job uuid) returns uuid
language sql as $$ select attempt_id from public.jobs where id = p_job $$;
create function tests.cancel(p_job uuid) returns text
language sql as $$ select tests.as('alice', format('public.cancel_job(%L)', p_job)) ->> 'state' $$;
create function tests.fail(p_node text, p_job uuid, p_lease uuid, p_code text, p_message text default null) returns jsonb
language sql as $$ select tests.as(p_node, format('public.fail_attempt(%L, %L, %L, %L)', tests.attempt(p_job), p_lease, p_code, p_message)) $$;
create function tests.job(p_number int) returns uuid
language sql as $$ select ('00000000-0000-7000-8000-0000000000' || lpad(p_number::text, 2, '0'))::uuid $$;

-- ------------------------------------------------------------ an ordinary life
select tests.online('attic', 1, 1, 2), tests.online('barn', 1, 1.5, 3), tests.online('cellar', 1, 900, 900);
select tests.submit('bob', tests.job(1));
select is((select provider_name from public.job_attempts), 'attic', 'somebody else''s job has the cheapest node');
select tests.submit('alice', tests.job(2));
select tests.pass_time('400 milliseconds'), tests.start('barn', tests.attempt(tests.job(2)), tests.job(2));
select tests.pass_time('3200 milliseconds'), tests.complete('barn', tests.attempt(tests.job(2)), tests.job(2));
select is(tests.story(tests.job(2)), e'Submitted: m, for at most 0.000664 USD.
Given to node barn: of 3 offers the only one that could take it; 1 was above the cap, 1 was busy.
Node barn started it, 0.4 s after it was offered.
Node barn completed it in 3.2 s: 5 tokens in, 2 out, for 0.0000135 USD.', 'the life of a job is told');
select is(tests.causes(tests.job(2)), 'submitted:consumer assigned:score running:node completed:node', 'with the cause of each');
create temp table told as select tests.explain('alice', tests.job(2)) as e;
select is((e #> '{attempts,0,choice}') - 'offers', '{"by":"score","seen":3}', 'the choice is told') from told;
select is((select jsonb_agg(o -> 'reason' order by o -> 'reason') from jsonb_array_elements(e #> '{attempts,0,choice,offers}') o),
  '[null, "above the cap", "busy"]', 'with the reason why each other was not chosen') from told;
select is((select string_agg(coalesce(o #>> '{node,name}', '?'), ' ' order by o #>> '{node,name}') from jsonb_array_elements(e #> '{attempts,0,choice,offers}') o),
  'attic barn cellar', 'and the names of their nodes') from told;
select is(e #>> '{attempts,0,node,name}', 'barn', 'each attempt has its node') from told;
select is((e #>> '{attempts,0,ended_at}')::timestamptz - (e #>> '{attempts,0,started_at}')::timestamptz, interval '3.2 seconds', 'and its times') from told;
select is((select string_agg(format('%s %s %s', l ->> 'kind', l ->> 'account', trim_scale((l ->> 'amount')::numeric)), ', ' order by n)
  from jsonb_array_elements(e -> 'ledger') with ordinality as x (l, n)),
  'hold available -0.000664, hold held 0.000664, capture held -0.000664, capture fee 0.000000675, capture earned 0.000012825, capture available 0.0006505',
  'and each line of the ledger') from told;
select is((select sum((l ->> 'amount')::numeric) from jsonb_array_elements(e -> 'ledger') l), 0::numeric, 'which sum to zero') from told;
select is(e -> 'waiting', 'null', 'it waits for nothing') from told;
select is(e -> 'chain', '{"ok":true,"events":4,"broken_at":null}', 'its history is whole') from told;
select unalike(e::text, '%hello%', 'neither prompt nor answer is in it') from told;
update public.providers set is_public = false where name = 'cellar';
select is((select count(*) from jsonb_array_elements(tests.explain('alice', tests.job(2)) #> '{attempts,0,choice,offers}') o where o -> 'node' = 'null'), 1::bigint,
  'a private node has no name for a consumer');
select alike(tests.explain('olga', tests.job(2)) #>> '{attempts,0,choice,offers}', '%cellar%', 'but for an operator');

-- ------------------------------------------------------------ who may ask
select throws_ok(format('select tests.explain(%L, %L)', n, tests.job(2)), s, null, n || ' is not told of it')
from (values ('bob', 'PT404'), ('carol', 'PT404'), ('dave', 'PT404'), ('barn', 'PT401')) v (n, s);

-- ------------------------------------------------------------ a retry elsewhere
update public.settings set value = '2' where key = 'max_attempts';
select tests.as('bob', format('public.cancel_job(%L)', tests.job(1)));
select tests.as('alice', format('public.submit_job(%L, ''m'', ''{"messages":[{"role":"user","content":"hello"}]}'', p_max_cost => 1, p_needs => %L)',
  tests.job(3), jsonb_build_object('prefer', jsonb_build_array(tests.subject('attic')))));
select tests.start('attic', tests.attempt(tests.job(3)), tests.job(3)), tests.fail('attic', tests.job(3), tests.job(3), 'engine_failed', 'CUDA out of memory');
select tests.start('barn', tests.attempt(tests.job(3)), tests.job(3)), tests.pass_time('1 second'), tests.complete('barn', tests.attempt(tests.job(3)), tests.job(3));
select is(tests.story(tests.job(3)), e'Submitted: m, for at most 1 USD.
Given to node attic: the best of 3 offers that could take it.
Node attic started it, 0.0 s after it was offered.
Attempt 1 on node attic failed (engine_failed): CUDA out of memory. It went back to the head of its line.
Given to node barn: the best of 2 offers that could take it; 1 had failed it before.
Node barn started it, 0.0 s after it was offered.
Node barn completed it in 1.0 s: 5 tokens in, 2 out, for 0.0000135 USD.', 'a failure is told with its reason, and where it went next');
select is(tests.causes(tests.job(3)), 'submitted:consumer assigned:score running:node queued:engine_failed assigned:score running:node completed:node', 'and its cause');
select unalike((select string_agg(data::text, ' ') from public.job_events), '%CUDA%', 'an event has the hash of a message, not the message');
select is((select data ->> 'message_sha256' from public.job_events where job_id = tests.job(3) and seq = 4),
  encode(sha256('CUDA out of memory'), 'hex'), 'by which it can be recognised');

-- ------------------------------------------------------------ waiting, and late results
select tests.submit('bob', p_max_cost => 1), tests.submit('bob', p_max_cost => 1), tests.as('cellar', 'public.heartbeat(p_draining => true)');
select tests.submit('alice', tests.job(4), p_max_cost => 1);
select is(tests.story(tests.job(4)), 'Submitted: m, for at most 1 USD. Of 3 offers none took it at once: 2 were busy, 1 took no new work; it joined its line.',
  'it is told why no node had it when it was submitted');
select is(e ->> 'state', 'queued', 'it waits') from tests.explain('alice', tests.job(4)) e;
select is(e #>> '{waiting,code}', 'all_busy', 'and says for what') from tests.explain('alice', tests.job(4)) e;
select is((select jsonb_agg(o -> 'reason' order by o -> 'reason') from jsonb_array_elements(e #> '{waiting,offers}') o), '["busy", "busy", "takes no new work"]',
  'each offer with the reason why it does not take it now') from tests.explain('alice', tests.job(4)) e;
select tests.pass_time('4 seconds'), tests.as('attic', 'public.heartbeat()'), infernet.tick(), infernet.tick();
select is((select state::text from public.jobs where id = tests.job(4)), 'assigned', 'when slots are free again it gets one');
select matches(tests.story(tests.job(4)), 'Given to node (attic|barn)', 'which is told');
create temp table first as select attempt_id as id, (select provider_name from public.job_attempts where id = attempt_id) as node from public.jobs where id = tests.job(4);
select tests.start(node, id, tests.job(4)) from first;
select tests.cancel(tests.job(4)), tests.pass_time('11 seconds'), infernet.tick();
select tests.complete(node, id, tests.job(4)) from first;
select matches(tests.story(tests.job(4)), e'Its consumer cancelled it; node \\w+ was told to stop\\.\n.*did not answer the cancellation.* Nothing is paid\\.\nNode \\w+ sent a result that did not count, because its attempt is cancelled',
  'a cancellation, its end, and what came after it');

-- ------------------------------------------------------------ cancelled and failed for good
select tests.as('bob', format('public.cancel_job(%L)', id)) from public.jobs where consumer_id = tests.user('bob') and ended_at is null;
select tests.as(n, 'public.heartbeat()') from unnest(array['attic', 'barn', 'cellar']) n;
select tests.submit('alice', tests.job(5), p_max_cost => 1), tests.cancel(tests.job(5));
select alike(tests.story(tests.job(5)), '%Its consumer cancelled it before it started; nothing is paid.', 'cancelled before it started');
select tests.as('alice', format('public.submit_job(%L, ''m'', ''{"messages":[{"role":"user","content":"hello"}]}'', p_delay_secs => 60)', tests.job(6)));
select is(tests.story(tests.job(6)), e'Submitted: m, for at most ' || (select infernet.usd_text(price_cap) from public.jobs where id = tests.job(6)) || '. It was to wait until 2026-11-01 12:01:19 UTC.',
  'a delay is told');
select is(tests.explain('alice', tests.job(6)) #>> '{waiting,code}', 'delayed', 'as what it waits for');
select tests.cancel(tests.job(6));
select alike(tests.story(tests.job(6)), '%Its consumer cancelled it before a node had it; nothing is paid.', 'cancelled before a node had it');
select tests.submit('alice', tests.job(7), p_max_cost => 1);
select tests.fail((select provider_name from public.job_attempts where id = tests.attempt(tests.job(7))), tests.job(7), null, 'engine_unavailable');
select tests.fail((select provider_name from public.job_attempts where id = tests.attempt(tests.job(7))), tests.job(7), null, 'engine_unavailable');
select alike(tests.story(tests.job(7)), '%It failed for good after its attempts; nothing is paid.', 'failed for good');
select tests.as('alice', format('public.retry_job(%L)', tests.job(7)));
select alike(tests.story(tests.job(7)), '%Its consumer let it try again%', 'and tried again by its consumer');
select is((select count(*) from jsonb_array_elements(tests.explain('alice', tests.job(7)) -> 'ledger') l where l ->> 'kind' = 'hold' and l ->> 'account' = 'held'), 2::bigint, 'with a second hold');
select tests.submit('alice', tests.job(8), p_max_cost => 1);
select tests.fail((select provider_name from public.job_attempts where id = tests.attempt(tests.job(8))), tests.job(8), null, 'bad_request', 'no such role');
select alike(tests.story(tests.job(8)), '%(bad_request): no such role. The fault is the job''s own%', 'a fault of the job''s own');
select tests.as(n, 'public.heartbeat(p_draining => true)') from unnest(array['attic', 'barn', 'cellar']) n;
select tests.submit('alice', tests.job(9), p_max_cost => 1), tests.pass_time('700 seconds'), infernet.tick();
select alike(tests.story(tests.job(9)), '%Its deadline passed before a node took it; nothing is paid.', 'expired in its line');

-- ------------------------------------------------------------ an item of a batch
select tests.as('alice', format('public.submit_batch(%L, ''m'', %L, p_max_cost => 0.1)', tests.job(50),
  '[{"messages":[{"role":"user","content":"hello"}]},{"messages":[{"role":"user","content":"hello"}]}]'));
create temp table item as select tests.explain('alice', id) as e from public.jobs where batch_id = tests.job(50) and batch_item = 2;
select is(e #>> '{story,0,what}', format('Submitted: m, for at most 0.1 USD, as item 2 of batch %s.', tests.job(50)), 'an item says of which batch it is') from item;
select is((select jsonb_agg(distinct jsonb_build_array(l -> 'kind', abs((l ->> 'amount')::numeric) = 0.2, l -> 'of_batch')) from jsonb_array_elements(e -> 'ledger') l),
  '[["hold", true, true]]', 'and that the hold is the batch''s') from item;
select isnt(e #> '{waiting,offers}', '[]', 'and why it waits') from item;
select tests.as('alice', format('public.cancel_batch(%L)', tests.job(50)));
select alike(tests.story(id), '%Its consumer cancelled it before a node had it; nothing is paid.', 'or that it was cancelled') from public.jobs where batch_id = tests.job(50) and batch_item = 1;

-- ------------------------------------------------------------ a history that was touched
select is(tests.as('olga', 'public.check_histories()') - 'checked', '{"broken":[],"reached":null}', 'all histories are whole');
select cmp_ok((tests.as('olga', 'public.check_histories()') ->> 'checked')::int, '>=', 9, 'of all jobs');
select is(tests.as('olga', format('public.check_histories(%L, 1)', tests.job(1))), jsonb_build_object('checked', 1, 'broken', '[]'::jsonb, 'reached', tests.job(2)), 'or of a part of them');
-- Does something to the histories, looks, and undoes it.
create function tests.touched(p_sql text) returns text
language plpgsql as $$
declare
  v_found text;
begin
  execute p_sql;
  v_found := format('%s, at %s of %s', (tests.explain('alice', tests.job(3)) #>> '{chain,ok}'), tests.explain('alice', tests.job(3)) #>> '{chain,broken_at}',
                    (tests.as('olga', 'public.check_histories()') -> 'broken'));
  raise exception sqlstate 'ZZ000' using message = v_found;
exception when sqlstate 'ZZ000' then
  return sqlerrm;
end $$;
select is(tests.touched(sql), format('false, at %s of [{"at": %s, "job": "%s"}]', at, at, tests.job(3)), what)
from (values
  ($$update public.job_events set event = 'completed' where job_id = tests.job(3) and seq = 2$$, 2, 'a changed event is found'),
  ($$update public.job_events set data = data || '{"cost":"0.1"}' where job_id = tests.job(3) and seq = 7$$, 7, 'also the last one'),
  ($$update public.job_events set created_at = created_at - interval '1 second' where job_id = tests.job(3) and seq = 4$$, 4, 'and one of another time'),
  ($$update public.job_events set attempt_id = null where job_id = tests.job(3) and seq = 4$$, 4, 'and one of no attempt'),
  ($$delete from public.job_events where job_id = tests.job(3) and seq = 4$$, 4, 'a missing event is found'),
  ($$delete from public.job_events where job_id = tests.job(3) and seq = 7$$, 7, 'also the last one'),
  ($$delete from public.job_events where job_id = tests.job(3)$$, 1, 'and all of them'),
  ($$update public.job_events e set event = o.event, data = o.data, attempt_id = o.attempt_id, created_at = o.created_at, digest = o.digest
     from public.job_events o where e.job_id = tests.job(3) and o.job_id = e.job_id and (e.seq, o.seq) in ((5, 6), (6, 5))$$, 5, 'two that changed places are found'),
  ($$insert into public.job_events select job_id, 8, attempt_id, 'completed', data, created_at,
       infernet.event_digest(digest, job_id, 8, attempt_id, 'completed', data, created_at) from public.job_events where job_id = tests.job(3) and seq = 7$$, 8,
   'one too many is found, even with a digest that fits'),
  ($$update public.jobs set events_digest = sha256('x') where id = tests.job(3)$$, 7, 'another head is found'),
  ($$update public.jobs set events = 5 where id = tests.job(3)$$, 6, 'and another count')) v (sql, at, what);
select alike(tests.touched($$insert into public.job_events values (tests.job(99), 1, null, 'submitted', '{}', now(), sha256('x'))$$), '%"job": "' || tests.job(99) || '"%',
  'a history without a job is found');
delete from public.job_events where job_id = tests.job(3) and seq = 7;
select matches((select string_agg(f ->> 'what', ' ') from jsonb_array_elements(tests.as('olga', 'public.health()') -> 'findings') f),
  'The history of a job was changed after it was written: job ' || tests.job(3) || ', event 7', 'health says so');
select * from finish();
rollback;
