-- Offers and matching: what is an offer, which offers a job may have, and which of them it gets.
begin;
\ir actors.psql
select no_plan();

select tests.set_clock('2026-11-01 12:00:00+00');
select tests.operator('olga'), tests.user('alice'), tests.credit('alice', 1000), tests.user('bob'), tests.credit('bob', 1000);
select tests.node('a', 'carol'), tests.node('b', 'dave');
select infernet.tick();

create function tests.attempt(p_job uuid) returns uuid
language sql as $$ select id from public.job_attempts where job_id = p_job order by number desc limit 1 $$;
create function tests.runner(p_job uuid) returns text
language sql as $$ select provider_name from public.job_attempts where job_id = p_job order by number desc limit 1 $$;
create function tests.set(p_key text, p_value jsonb) returns void
language sql as $$ update public.settings set value = p_value where key = p_key $$;
-- Registers a node with one offer of model m, whose keys are added to or replaced.
create function tests.offer(p_node text, p_offer jsonb default '{}', p_inventory jsonb default '{}') returns jsonb
language sql as $$
  select tests.as(p_node, format('public.register_node(%L, %L)', '{"platform":"linux"}' || p_inventory,
    jsonb_build_array('{"model":"m","slots":4,"price_input":1,"price_output":2}' || p_offer)))
$$;
-- What the market makes of a job of 100 tokens in and 100 out.
create function tests.look(p_needs jsonb default '{}', p_cap numeric default 1, p_failed_on uuid[] default '{}',
                           p_retry_after timestamptz default null) returns infernet.choice
language plpgsql as $$
declare
  v_job  public.jobs;
  v_user public.users;
begin
  select * into v_user from public.users where id = tests.user('alice');
  v_job := infernet.draft_job(infernet.settings_now(), v_user, infernet.find_model('m'), 'chat', 100, null, null, null, p_needs, 0, 0);
  v_job.input_bound := 100;
  v_job.price_cap := p_cap;
  v_job.failed_on := p_failed_on;
  v_job.retry_after := p_retry_after;
  return infernet.candidates(v_job, infernet.settings_now());
end $$;
-- Of a choice: the nodes that could start the job, best first; why a node could not; its score.
create function tests.order_of(p_choice infernet.choice) returns text
language sql as $$
  select coalesce(string_agg(p.name, ' ' order by c.n), 'none') from unnest(p_choice.offers) with ordinality as c (id, n)
  join public.offers o on o.id = c.id join public.providers p on p.id = o.provider_id
$$;
create function tests.verdict(p_choice infernet.choice, p_node text) returns text
language sql as $$
  select case jsonb_typeof(e -> 1) when 'number' then 'fits' else e ->> 1 end
  from jsonb_array_elements(p_choice.record -> 'offers') e where e ->> 0 = tests.subject(p_node)::text
$$;
create function tests.score(p_choice infernet.choice, p_node text) returns numeric
language sql as $$
  select (e ->> 1)::numeric from jsonb_array_elements(p_choice.record -> 'offers') e where e ->> 0 = tests.subject(p_node)::text
$$;
create function tests.nodes(p_nodes text[]) returns jsonb
language sql as $$ select jsonb_agg(tests.subject(n)) from unnest(p_nodes) n $$;

-- ------------------------------------------------------------ what is an offer
select throws_ok(format('select tests.offer(%L, %L)', 'a', v.offer), 'PT422', null, 'no offer: ' || v.offer)
from (values ('{"model": null}'), ('{"model": ""}'), ('{"model": "-m"}'), ('{"model": "m m"}'), ('{"model": {}}'),
  ('{"price_input": "dear"}'), ('{"price_input": -1}'), ('{"price_output": 10001}'), ('{"price_output": "NaN"}'), ('{"price_input": "1e400000"}'),
  ('{"slots": 0}'), ('{"slots": 1025}'), ('{"slots": "many"}'), ('{"slots": 99999999999}'), ('{"digest": "00"}'), ('{"digest": 1}'),
  ('{"context_length": "long"}'), ('{"context_length": 0}'), ('{"context_length": 99999999999}'),
  ('{"image": "busybox"}'), ('{"image": "busybox", "price_second": 1.01}'), ('{"image": "busybox", "price_second": -1}'),
  ('{"image": "busybox", "price_second": "NaN"}'), ('{"image": "busy box", "price_second": 0.1}'), ('{"image": null, "price_second": 0.1}')) as v (offer);
select throws_ok($$select tests.as('a', 'public.register_node(''{}'', ''{"model":"m"}'')')$$, 'PT422', 'Offers must be an array of at most 200 objects.', 'offers are an array');
select throws_ok($$select tests.as('a', 'public.register_node(''{}'', ''["m", 1]'')')$$, 'PT422', null, 'of objects');
select throws_ok(format($$select tests.as('a', format('public.register_node(''{}'', %%L)', %L))$$, (select jsonb_agg(jsonb_build_object('model', 'm' || n)) from generate_series(1, 201) n)),
  'PT422', null, 'and of not too many');
select is((select count(*) from public.offers), 0::bigint, 'of all that nothing was kept');
select is((tests.offer('a', '{"price_input": null, "price_output": null, "slots": null}') #> '{offers,0}') - 'id',
  '{"busy": 0, "model": "m", "slots": 1, "price_input": "0.100000000000", "price_output": "0.400000000000"}', 'what an offer does not say, the settings say');
select is((select count(*) from public.offers), 1::bigint, 'it is one row');
select tests.offer('a', '{"slots": 3}');
select is((select (count(*), max(o.slots), max(l.slots))::text from public.offers o join infernet.offer_load l on l.offer_id = o.id), '(1,3,3)', 'also when it is registered again');
select tests.as('a', 'public.register_node(''{}'', ''[]'')');
select is(tests.order_of(tests.look()), 'none', 'an offer that is not named again is none');
select tests.offer('a');
select is(tests.order_of(tests.look()), 'a', 'until it is');
select tests.set('open_models', 'false');
select throws_ok($$select tests.offer('a', '{"model": "m2"}')$$, 'PT422', 'Model m2 is not listed here.', 'where models are listed, others are refused');
select lives_ok($$select tests.offer('a')$$, 'and those that are listed are not');
select tests.set('open_models', 'true');

-- An operator's floors.
select tests.offer('b', '{"price_input": 0.5, "price_output": 3}');
select tests.set('price_input_min', '0.6');
select is(tests.order_of(tests.look()), 'a', 'a price floor switches off what lies below it');
select throws_ok($$select tests.offer('b', '{"price_input": 0.5}')$$, 'PT422', null, 'and refuses it');
select lives_ok($$select tests.offer('b', '{"price_input": 0.6, "price_output": 3}')$$, 'at the floor it may come back');
select tests.set('price_output_min', '2.5');
select is(tests.order_of(tests.look()), 'b', 'outputs have their own floor');
select throws_ok($$select tests.offer('a')$$, 'PT422', null, 'which refuses too');
select tests.set('price_input_min', '0'), tests.set('price_output_min', '0');

-- ------------------------------------------------------------ which offers a job may have
select tests.offer('a', '{}', '{"region":"de","labels":["ssd","quiet"],"gpus":[{"vendor":"nvidia","model":"L4","vram_tier":"16GB"},{"vendor":"nvidia","model":"L4","vram_tier":"8GB"}]}');
select tests.offer('b', '{"price_input": 2, "price_output": 4}');
select is(tests.order_of(tests.look()), 'a b', 'a job without needs may have both');
create temp table need (needs jsonb, cap numeric, a text, b text);
insert into need values
  ('{}',                          0.0006,   'fits', 'fits'),
  ('{}',                          0.0005,   'fits', 'above the cap'),
  ('{}',                          0.0003,   'fits', 'above the cap'),
  ('{}',                          0.000299, 'above the cap', 'above the cap'),
  ('{"vram_gb": 24}',             1,        'fits', 'too little memory'),
  ('{"vram_gb": 25}',             1,        'too little memory', 'too little memory'),
  ('{"vram_gb": 0}',              1,        'fits', 'fits'),
  ('{"labels": ["ssd"]}',         1,        'fits', 'without the labels'),
  ('{"labels": ["quiet","ssd"]}', 1,        'fits', 'without the labels'),
  ('{"labels": ["ssd","ups"]}',   1,        'without the labels', 'without the labels'),
  ('{"labels": []}',              1,        'fits', 'fits'),
  ('{"region": "de"}',            1,        'fits', 'in another region'),
  ('{"region": "fr"}',            1,        'in another region', 'in another region');
insert into need values
  (jsonb_build_object('exclude', tests.nodes('{a}')),   1, 'excluded', 'fits'),
  (jsonb_build_object('exclude', tests.nodes('{a,b}')), 1, 'excluded', 'excluded'),
  (jsonb_build_object('prefer', tests.nodes('{b}')),    1, 'fits', 'fits'),
  (jsonb_build_object('prefer', tests.nodes('{b}'), 'exclude', tests.nodes('{b}')), 1, 'fits', 'excluded');
select is((tests.verdict(c, 'a'), tests.verdict(c, 'b')), (n.a, n.b), format('%s at %s USD', n.needs, n.cap))
from need n cross join lateral tests.look(n.needs, n.cap) c;
select throws_ok(format('select tests.look(%L)', v.needs), 'PT422', null, 'no needs: ' || v.needs)
from (values ('{"vram": 1}'), ('[]'), ('1'), ('{"vram_gb": "much"}'), ('{"vram_gb": -1}'), ('{"labels": "ssd"}'), ('{"labels": {}}'), ('{"prefer": ["a"]}'),
  ('{"exclude": "a"}'), ('{"vram_gb": 99999999999}')) as v (needs);
select throws_ok(format('select tests.look(%L)', jsonb_build_object('prefer', (select jsonb_agg(gen_random_uuid()) from generate_series(1, 33)))),
  'PT422', null, 'more than 32 preferred nodes are refused');

-- A free slot looks for its job by the same rules.
create function tests.slot_takes(p_node text, p_needs jsonb, p_cap numeric) returns boolean
language plpgsql as $$
declare
  v_offer public.offers;
  v_ids   uuid[];
  v_job   uuid := gen_random_uuid();
begin
  update public.node_liveness set draining = true;
  perform tests.as('alice', format('public.submit_job(%L, ''m'', ''{"messages":[{"role":"user","content":"x"}]}'', p_max_tokens => 100, p_max_cost => 1, p_needs => %L)', v_job, p_needs));
  update public.node_liveness set draining = false;
  update infernet.queue set price_cap = p_cap, input_bound = 100 where job_id = v_job;
  select o.* into v_offer from public.offers o where o.provider_id = tests.subject(p_node);
  v_ids := infernet.next_ids(v_offer, 1, infernet.settings_now());
  perform tests.as('alice', format('public.cancel_job(%L)', v_job));
  return v_ids = array[v_job];
end $$;
select is((coalesce(tests.slot_takes('a', n.needs, n.cap), false), coalesce(tests.slot_takes('b', n.needs, n.cap), false)), (n.a = 'fits', n.b = 'fits'),
  format('by slots: %s at %s USD', n.needs, n.cap)) from need n;

-- What a node is doing.
create function tests.take(p_node text, p_slots int) returns void
language sql as $$
  delete from infernet.live_attempts where provider_id = tests.subject(p_node);
  insert into infernet.live_attempts (job_id, attempt_id, offer_id, provider_id, consumer_id, due_at)
  select gen_random_uuid(), gen_random_uuid(), o.id, o.provider_id, tests.user('bob'), 'infinity'
  from public.offers o, generate_series(1, p_slots) where o.provider_id = tests.subject(p_node)
$$;
select tests.as('b', 'public.heartbeat(p_draining => true)');
select is(tests.verdict(tests.look(), 'b'), 'takes no new work', 'a node that drains gets nothing');
select tests.as('b', 'public.heartbeat()');
select tests.take('b', 4);
select is(tests.verdict(tests.look(), 'b'), 'busy', 'nor one that is full');
select tests.take('a', 0), tests.take('b', 0);
select is(tests.verdict(tests.look('{}', 1, array[tests.subject('b')], infernet.clock() + interval '1 second'), 'b'), 'failed it before', 'nor one that has just failed the job');
select is(tests.order_of(tests.look('{}', 1, array[tests.subject('a')], infernet.clock())), 'b a', 'after retry_after it may, but comes last');
select is(tests.order_of(tests.look('{}', 1, array[tests.subject('a'), tests.subject('b')], infernet.clock() + interval '1 second')), 'none', 'where all have failed it, it waits');
select tests.pass_time('14 seconds'), tests.as('a', 'public.heartbeat()'), tests.pass_time('1 second');
select is(tests.verdict(tests.look(), 'b'), 'offline', 'nor one whose lease has run out, with or without a tick');
select tests.as('b', 'public.heartbeat()');
select is((tests.look()).record -> 'seen', '2', 'the record says how many were looked at');

-- A cap that the consumer leaves open follows from the lowest price.
select is((c.cap, c.lowest), (0.0006, 0.0003), 'an open cap is so many times the lowest price') from tests.look('{}', null) c;
select tests.set('cap_factor', '1');
select is(tests.order_of(tests.look('{}', null)), 'a', 'and holds like one that was given');
select tests.set('cap_factor', '2');

-- ------------------------------------------------------------ which of them it gets: one weight at a time
create function tests.weigh(p_weights jsonb) returns void language sql as $$ select tests.set('weights', p_weights) $$;
create function tests.load_of(p_node text) returns uuid
language sql as $$ select o.id from public.offers o where o.provider_id = tests.subject(p_node) $$;
-- The nodes that come first in so many looks.
create function tests.first_of(p_times int) returns text
language plpgsql as $$
declare
  v_names text[] := '{}';
begin
  for i in 1 .. p_times loop
    v_names := v_names || split_part(tests.order_of(tests.look()), ' ', 1);
  end loop;
  return (select string_agg(distinct n, ' ' order by n) from unnest(v_names) n);
end $$;
select tests.weigh('{}');
select is(tests.first_of(40), 'a b', 'where nothing weighs, chance decides');
select is((tests.score(c, 'a'), tests.score(c, 'b')), (0::numeric, 0::numeric), 'between scores that are equal') from tests.look() c;

select tests.weigh('{"price": 1}');
select is(tests.first_of(20), 'a', 'price: the cheaper one');
select is((tests.score(c, 'a'), tests.score(c, 'b')), (0.3, 0.6), 'by the share of the cap') from tests.look('{}', 0.001) c;
select tests.offer('b');
select is(tests.first_of(40), 'a b', 'at one price, chance');

select tests.weigh('{"speed": 1}');
update infernet.offer_load set speed = case offer_id when tests.load_of('b') then 100 else 50 end;
select is(tests.first_of(20), 'b', 'speed: the faster one');
select is((tests.score(c, 'a'), tests.score(c, 'b')), (0.5, 0.333), 'against an ordinary one') from tests.look() c;
update infernet.offer_load set speed = null where offer_id = tests.load_of('a');
select is(tests.score(tests.look(), 'a'), 0.5, 'one that was never seen counts as ordinary');
update infernet.offer_load set speed = null;

select tests.weigh('{"outcomes": 1}');
update public.offers set reputation = 75 where id = tests.load_of('a');
select is(tests.first_of(20), 'a', 'outcomes: the one of better standing');
select is((tests.score(c, 'a'), tests.score(c, 'b')), (0.25, 0.5), 'by what is missing to a hundred') from tests.look() c;
update public.offers set reputation = 50;

select tests.weigh('{"warm": 1}');
update infernet.offer_load set last_done = infernet.clock() - interval '299 seconds' where offer_id = tests.load_of('b');
select is(tests.first_of(20), 'b', 'warm: the one that has just served this model');
update infernet.offer_load set last_done = infernet.clock() - interval '300 seconds' where offer_id = tests.load_of('b');
select is(tests.first_of(40), 'a b', 'for warm_secs');

select tests.weigh('{"load": 1}');
select tests.take('a', 1);
select is(tests.first_of(20), 'b', 'load: the one with more room');
select is(tests.score(tests.look(), 'a'), 0.25, 'by the share of its slots');
select tests.take('a', 0), tests.take('b', 0);

select tests.weigh('{"realtime": 1}');
select tests.as('a', 'public.heartbeat(p_realtime => false)');
select is(tests.first_of(20), 'b', 'realtime: the one that hears wake-ups');
select tests.as('a', 'public.heartbeat()');
select is(tests.first_of(40), 'a b', 'when both hear them, chance');

select tests.weigh('{"prefer": 1}');
select is(tests.order_of(tests.look(jsonb_build_object('prefer', tests.nodes('{b}')))), 'b a', 'prefer: the one that the consumer prefers');
select is(tests.score(tests.look(jsonb_build_object('prefer', tests.nodes('{b}'))), 'b'), -1::numeric, 'by that much');

select tests.weigh('{"retry": 1}');
select is(tests.order_of(tests.look('{}', 1, array[tests.subject('b')])), 'a b', 'retry: not the one that failed it before');
select is(tests.score(tests.look('{}', 1, array[tests.subject('b')]), 'b'), 1::numeric, 'by that much');

select tests.weigh('{"price": 1, "load": 1}'), tests.offer('b', '{"price_input": 2, "price_output": 4}');
select tests.take('a', 2);
select is((tests.score(c, 'a'), tests.score(c, 'b')), (0.8, 0.6), 'what weighs is added up') from tests.look('{}', 0.001) c;
select tests.take('a', 0), tests.take('b', 0);
select is(infernet.score(infernet.weights('{"weights": {}}'), 0, 0, 0, false, 0, false, false, false), 0::double precision, 'what no weight is given does not weigh');
select tests.weigh('{"price":1,"speed":0.3,"outcomes":0.3,"warm":0.2,"load":0.3,"realtime":0.05,"prefer":2,"retry":10}');

-- ------------------------------------------------------------ models that many offer
create function tests.crowd() returns void
language plpgsql as $$
begin
  for i in 1 .. 30 loop
    perform tests.node('c' || i, 'carol');
    perform tests.offer('c' || i, '{"price_input": 3, "price_output": 6}');
  end loop;
end $$;
select tests.crowd(), tests.set('candidates_max', '5'), tests.weigh('{}');
select is((tests.look()).record -> 'seen', '5', 'of many offers a part is looked at');
select is(jsonb_array_length((tests.look()).record -> 'offers'), 5, 'and recorded');
create function tests.seen(p_times int) returns bigint
language plpgsql as $$
declare
  v_names text[] := '{}';
begin
  for i in 1 .. p_times loop
    v_names := v_names || string_to_array(tests.order_of(tests.look()), ' ');
  end loop;
  return (select count(distinct n) from unnest(v_names) n);
end $$;
select is(tests.seen(400), 32::bigint, 'each time another, so that everybody is seen');
select tests.weigh('{"prefer": 1}');
select is(array(select distinct split_part(tests.order_of(tests.look(jsonb_build_object('prefer', tests.nodes('{c7}')))), ' ', 1) from generate_series(1, 30)),
  array['c7'], 'but a preferred node always is');
select cmp_ok(((tests.look(jsonb_build_object('prefer', tests.nodes('{c7,c8}')))).record -> 'seen')::int, '<=', 7, 'beside the others');
create temp table dear as select tests.submit('alice', gen_random_uuid(), 100, 0.0006) as j from generate_series(1, 20);
select is((select count(*) from dear), 20::bigint, 'a cap that some offer meets is never refused because of the part that was looked at');
select throws_ok($$select tests.submit('alice', gen_random_uuid(), 100, 0.0001)$$, 'PT422', null, 'one that none meets is');
select tests.as('alice', format('public.cancel_job(%L)', j ->> 'id')) from dear;
select tests.as('c' || i, 'public.leave()') from generate_series(1, 30) i;
update public.offers set enabled = false where provider_id not in (tests.subject('a'), tests.subject('b'));
select tests.set('candidates_max', '64'), tests.weigh('{"price":1,"speed":0.3,"outcomes":0.3,"warm":0.2,"load":0.3,"realtime":0.05,"prefer":2,"retry":10}');

-- ------------------------------------------------------------ approval
select tests.node('p', 'erin', 'pending');
select is(tests.offer('p', '{"price_input": 0, "price_output": 0}') ->> 'approval', 'pending', 'a node that waits for approval may register');
select is(tests.order_of(tests.look()), 'a b', 'but gets no work, at whatever price');
select is(tests.as('p', 'public.heartbeat()') -> 'attempts', '[]', 'nor when it asks');
select tests.as('olga', format('public.set_node_approval(%L, ''approved'')', tests.subject('p')));
select is(tests.order_of(tests.look()), 'p a b', 'approved, it does');
create temp table suspended as select (tests.submit('alice', '00000000-0000-7000-8000-000000000001', 100, 0.01) #>> '{attempt,id}')::uuid as id;
select is(tests.runner('00000000-0000-7000-8000-000000000001'), 'p', 'at once');
select tests.start('p', id, '11111111-1111-4111-8111-111111111111') from suspended;
select tests.as('olga', format('public.set_node_approval(%L, ''suspended'')', tests.subject('p')));
select is(tests.order_of(tests.look()), 'a b', 'suspended, it gets none');
select throws_ok($$select tests.as('p', 'public.heartbeat()')$$, 'PT403', 'Node p is suspended.', 'is told so');
select throws_ok(format('select tests.complete(%L, %L, %L)', 'p', id, '11111111-1111-4111-8111-111111111111'), 'PT403', null, 'and delivers nothing') from suspended;
create function tests.seconds(p_count int) returns void
language plpgsql as $$
begin
  for i in 1 .. p_count loop
    perform tests.pass_time('1 second');
    perform tests.as('a', 'public.heartbeat(array(select id from public.job_attempts where provider_id = auth.uid() and state = ''running''))');
    perform tests.as('b', 'public.heartbeat(array(select id from public.job_attempts where provider_id = auth.uid() and state = ''running''))');
    perform infernet.tick();
  end loop;
end $$;
select tests.seconds(17);
select is(tests.runner('00000000-0000-7000-8000-000000000001'), 'a', 'what it ran goes elsewhere with its lease');
select tests.as('alice', 'public.cancel_job(''00000000-0000-7000-8000-000000000001'')');

-- ------------------------------------------------------------ what holds is what was agreed on
create temp table agreed as select (tests.submit('alice', '00000000-0000-7000-8000-000000000002') #>> '{attempt,id}')::uuid as id;
select is(tests.runner('00000000-0000-7000-8000-000000000002'), 'a', 'a job is given to a');
select tests.offer('a', '{"price_input": 50, "price_output": 90}'), tests.set('fee_rate', '0.5');
select is(tests.start('a', id, '22222222-2222-4222-8222-222222222222') ->> 'price_output', '2.000000000000', 'a price that is raised after it does not hold for it') from agreed;
select tests.pass_time('1 second');
select is((tests.complete('a', id, '22222222-2222-4222-8222-222222222222') ->> 'earned')::numeric, 0.00000855, 'nor does a fee: (5 x 1 + 2 x 2) / 1e6 x 0.95') from agreed;
select is((select cost from public.jobs where id = '00000000-0000-7000-8000-000000000002'), 0.000009, 'it costs what was agreed on');
create temp table later as select (tests.as('alice', format('public.submit_job(''00000000-0000-7000-8000-000000000003'', ''m'', ''{"messages":[{"role":"user","content":"x"}]}'', p_max_cost => 1, p_needs => %L)',
  jsonb_build_object('exclude', tests.nodes('{b}')))) #>> '{attempt,id}')::uuid as id;
select is((select (price_input, price_output, fee_rate) from public.job_attempts where id = l.id), (50::numeric(38,12), 90::numeric(38,12), 0.5::numeric(9,8)), 'the next job has the new ones') from later l;
select tests.as('alice', 'public.cancel_job(''00000000-0000-7000-8000-000000000003'')');
select tests.offer('a'), tests.offer('b', '{"price_input": 2, "price_output": 4}'), tests.set('fee_rate', '0.05');

-- ------------------------------------------------------------ the file that is served
create function tests.digest() returns text
language sql as $$ select left(model_digest, 2) from public.offers where provider_id = tests.subject('a') and model_id = (infernet.find_model('m')).id $$;
-- What an owner says of its node, without being the agent that serves.
create function tests.terms(p_offer jsonb) returns jsonb
language sql as $$
  select tests.as('a', format('public.register_node(%L, %L, p_online => false)', '{"platform":"linux"}',
    jsonb_build_array('{"model":"m","slots":4,"price_input":1,"price_output":2}' || p_offer)))
$$;
select tests.offer('a', jsonb_build_object('digest', repeat('a', 64)));
select tests.terms('{"price_output": 3}');
select is(tests.digest(), 'aa', 'other prices say nothing about the file that an agent serves');
select is((select price_output from public.offers where provider_id = tests.subject('a') and model_id = (infernet.find_model('m')).id), 3::numeric(38,12), 'and count');
select tests.terms(jsonb_build_object('digest', repeat('b', 64)));
select is(tests.digest(), 'bb', 'an owner may name the file');
select tests.offer('a', jsonb_build_object('digest', repeat('c', 64)));
select is(tests.digest(), 'cc', 'an agent that serves another file says so');
select tests.offer('a');
select is(tests.digest(), null, 'and one that serves no file says that');

-- ------------------------------------------------------------ containers
select tests.offer('a', '{"model": null, "image": "docker.io/library/busybox:1.36", "price_second": 0.001}');
select is((select is_image from public.models where name = 'docker.io/library/busybox:1.36'), true, 'an image is offered by the second');
select throws_ok($$select tests.offer('b', '{"model": "docker.io/library/busybox:1.36"}')$$, 'PT422', null, 'it is no model');
select throws_ok($$select tests.offer('b', '{"image": "m", "price_second": 0.1}')$$, 'PT422', 'm is listed here as a model.', 'and a model is no image');
create function tests.container(p_id uuid, p_seconds int, p_input jsonb default '{"args": ["echo", "hello"]}', p_model text default 'docker.io/library/busybox:1.36') returns jsonb
language sql as $$ select tests.as('alice', format('public.submit_job(%L, %L, %L, ''container'', p_max_seconds => %L)', p_id, p_model, p_input, p_seconds)) $$;
select throws_ok($$select tests.container(gen_random_uuid(), 86401)$$, 'PT422', 'A container may run for 1 to 86400 seconds.', 'a container has its bound');
select throws_ok($$select tests.container(gen_random_uuid(), 0)$$, 'PT422', null, 'above 0');
select throws_ok($$select tests.container(gen_random_uuid(), 60, '{"args": "echo"}')$$, 'PT422', null, 'its arguments are an array');
select throws_ok($$select tests.container(gen_random_uuid(), 60, '{"args": [1]}')$$, 'PT422', null, 'of strings');
select throws_ok($$select tests.container(gen_random_uuid(), 60, '{"messages": []}')$$, 'PT422', null, 'and it takes no messages');
select throws_ok($$select tests.container(gen_random_uuid(), 60, p_model => 'm')$$, 'PT422', 'm is a model, which no container job runs.', 'a model runs no container');
select throws_ok($$select tests.submit('alice', p_model => 'docker.io/library/busybox:1.36')$$, 'PT422', 'docker.io/library/busybox:1.36 is an image, which runs in jobs of kind container.', 'and an image no chat');
select is(tests.as('alice', 'public.quote_job(''docker.io/library/busybox:1.36'', ''{"args": []}'', 60)') - 'cap', '{"model": "docker.io/library/busybox:1.36", "input_tokens": 0,
  "output_tokens": null, "seconds": 60, "offers": 1, "online": 1, "lowest": "0.060000000000", "highest": "0.060000000000"}', 'its quote is by the second');

create function tests.finish_container(p_node text, p_attempt uuid, p_lease uuid, p_seconds numeric) returns jsonb
language sql as $$
  select tests.as(p_node, format('public.complete_attempt(%L, %L, %L, %L, %L, %L)', p_attempt, p_lease, 'hello', 'stop', jsonb_build_object('seconds', p_seconds),
    (select jsonb_set(r, '{content}', to_jsonb(((r ->> 'content')::jsonb - 'input_tokens' - 'output_tokens'
       || jsonb_build_object('seconds', p_seconds, 'price_second', infernet.usd(a.price_second)))::text))
     from tests.receipt(p_attempt, 'hello', 'stop', 0, 0) r, public.job_attempts a where a.id = p_attempt)))
$$;
create function tests.run_container(p_id uuid, p_max int, p_takes interval, p_says numeric) returns jsonb
language plpgsql as $$
declare
  v_attempt uuid;
begin
  perform tests.as('a', 'public.heartbeat()');
  v_attempt := (tests.container(p_id, p_max) #>> '{attempt,id}')::uuid;
  perform tests.start('a', v_attempt, p_id);
  perform tests.pass_time(p_takes);
  return tests.finish_container('a', v_attempt, p_id, p_says);
end $$;
select is(r -> 'usage', '{"seconds": 11}', 'a container is paid for the seconds that the server saw, a begun one too') from tests.run_container('00000000-0000-7000-8000-000000000010', 60, '10.2 seconds', 1000) r;
select is((select (cost, seconds, output_tokens) from public.jobs where id = '00000000-0000-7000-8000-000000000010'), (0.011::numeric(38,12), 11, null::int), 'at its price');
select is((select price_cap from public.jobs where id = '00000000-0000-7000-8000-000000000010'), 0.12::numeric(38,12), 'of what was held for its bound');
select is(tests.as('alice', 'public.get_job(''00000000-0000-7000-8000-000000000010'')') -> 'usage', '{"seconds": 11}', 'the consumer is told');
select is(tests.finish_container('a', id, lease, 1000) - 'next', '{"accepted": true, "reason": "repeated", "job_state": "completed", "usage": {"seconds": 11}, "earned": "0.010450000000"}',
  'a repeat says the same seconds, and no tokens') from public.job_attempts where job_id = '00000000-0000-7000-8000-000000000010';
select is(r -> 'usage', '{"seconds": 3}', 'no more than its node says') from tests.run_container('00000000-0000-7000-8000-000000000011', 60, '10.2 seconds', 3) r;
select is(r -> 'usage', '{"seconds": 5}', 'and no more than was asked for') from tests.run_container('00000000-0000-7000-8000-000000000012', 5, '10.2 seconds', 1000) r;
select throws_ok($$select tests.run_container('00000000-0000-7000-8000-000000000013', 5, '1 second', -1)$$, 'PT422', 'The usage needs seconds, a number of at least 0.', 'nor less than nothing');
select tests.container('00000000-0000-7000-8000-000000000014', null);
select is((select to_jsonb(max_seconds) from public.jobs where id = '00000000-0000-7000-8000-000000000014'), (select value from public.settings where key = 'container_secs'),
  'a container that names no bound has the settings''');
select tests.as('alice', 'public.cancel_job(''00000000-0000-7000-8000-000000000014'')');
select is((select count(*) from public.offers o join infernet.offer_load l on l.offer_id = o.id where l.speed is not null), 0::bigint, 'seconds are no tokens: they say nothing about speed');

-- ------------------------------------------------------------ vectors
create function tests.vectors(p_input jsonb, p_id uuid default gen_random_uuid()) returns jsonb
language sql as $$ select tests.as('alice', format('public.submit_job(%L, ''m'', %L, ''embedding'')', p_id, p_input)) $$;
select throws_ok(format('select tests.vectors(%L)', v.input), 'PT422', v.why, 'no vectors of ' || v.input)
from (values ('{}', 'Vectors are made of a text, or of an array of texts.'), ('{"input": 1}', 'Vectors are made of a text, or of an array of texts.'),
             ('{"input": ["a", 1]}', 'Vectors are made of a text, or of an array of texts.'), ('{"input": [["a"]]}', 'Vectors are made of a text, or of an array of texts.'),
             ('{"input": ""}', null), ('{"input": []}', null), ('{"input": ["a", ""]}', null), ('[]', 'The input must be a JSON object.'),
             ('{"input": "a", "messages": []}', 'The input has a key that is not taken here: messages.')) as v (input, why);
select tests.offer('a');
select is((j ->> 'kind', j ->> 'state'), ('embedding'::text, 'assigned'::text), 'vectors of texts are a job')
from tests.vectors('{"input": ["a cat", "a dog"], "dimensions": 64}', '00000000-0000-7000-8000-000000000020') j;
select is((select (price_cap > 0, max_tokens) from public.jobs where id = '00000000-0000-7000-8000-000000000020'), (true, 0),
  'held for what goes in: nothing that is paid by the token comes out');
select tests.as('alice', 'public.cancel_job(''00000000-0000-7000-8000-000000000020'')');
select is(tests.vectors('{"input": "a cat"}', '00000000-0000-7000-8000-000000000021') ->> 'state', 'assigned', 'and of one text');
select tests.as('alice', 'public.cancel_job(''00000000-0000-7000-8000-000000000021'')');

-- ------------------------------------------------------------ speed is what the server saw
select tests.offer('a'), infernet.tick();
create function tests.answer(p_takes interval, p_text text, p_tokens int) returns real
language plpgsql as $$
declare
  v_job     uuid := gen_random_uuid();
  v_attempt uuid;
begin
  perform tests.as('a', 'public.heartbeat()');
  v_attempt := (tests.as('alice', format('public.submit_job(%L, ''m'', ''{"messages":[{"role":"user","content":"x"}]}'', p_max_tokens => 2000, p_needs => %L)',
                     v_job, jsonb_build_object('exclude', tests.nodes('{b}')))) #>> '{attempt,id}')::uuid;
  perform tests.start('a', v_attempt, v_job);
  perform tests.pass_time(p_takes);
  perform tests.complete('a', v_attempt, v_job, p_text, 'stop', 5, p_tokens);
  perform infernet.tick();
  return (select speed from infernet.offer_load where offer_id = (select o.id from public.offers o where o.provider_id = tests.subject('a') and o.enabled));
end $$;
select is(tests.answer('1 second', 'short', 5), null, 'a short answer says nothing about speed');
select is(tests.answer('2 seconds', repeat('word ', 40), 1000000), 100::real, 'a boast is bounded by the text: 200 tokens at most, in two seconds');
select is(tests.answer('2 seconds', repeat('word ', 40), 40), 84::real, 'an honest answer moves it by a fifth');
select is(tests.answer('0 seconds', repeat('word ', 40), 1000000), 84::real, 'an answer in no time says nothing');
select cmp_ok(tests.answer('0.01 seconds', repeat('word ', 400), 1000000), '<=', (84 + (2000 - 84) * 0.2 + 1)::real, 'nor can one be faster than tokens_per_second_max');
select is((select reported ->> 'output_tokens' from public.job_attempts order by offered_at desc limit 1), '1000000', 'what the node said is kept');

-- ------------------------------------------------------------ standing is what paying consumers saw
create function tests.outcome(p_node text, p_consumer text, p_count int, p_code text default null, p_cost numeric default 0.01) returns int
language plpgsql as $$
begin
  insert into infernet.outcomes (provider_id, owner_id, offer_id, consumer_id, code, cost, output_tokens, seconds, noted_at)
  select p.id, p.owner_id, gen_random_uuid(), tests.user(p_consumer), p_code, case when p_code is null then p_cost end, 100, 1, infernet.clock()
  from public.providers p, generate_series(1, p_count) where p.id = tests.subject(p_node);
  perform infernet.fold_outcomes(infernet.clock(), 10000);
  return (select reputation from public.providers where id = tests.subject(p_node));
end $$;
select tests.node('s1', 'carol'), tests.node('s2', 'carol'), tests.node('s3', 'carol'), tests.node('s4', 'carol'), tests.node('s5', 'carol');
select tests.offer('s1'), tests.offer('s2'), tests.offer('s3'), tests.offer('s4'), tests.offer('s5');
select is((select distinct reputation from public.providers where name like 's_'), 50, 'a new node stands in the middle');
select is(tests.outcome('s1', 'alice', 1), 67, 'one consumer who paid for one good job lifts it');
select is(tests.outcome('s1', 'alice', 1000), 67, 'a thousand more of the same one do not');
select is(tests.outcome('s1', 'bob', 1), 75, 'another consumer does');
select is((select reputation from public.offers where provider_id = tests.subject('s1')), 75, 'its offers stand where it stands');
select is(tests.outcome('s2', 'carol', 1000), 50, 'what its owner buys from it says nothing');
select is(tests.outcome('s3', 'alice', 1000, null, 0), 50, 'nor do jobs that cost nothing');
select is(tests.outcome('s3', 'bob', 1, null, 0.001), 52, 'and what costs next to nothing says hardly anything');
select is(tests.outcome('s4', 'alice', 1), 67, 'whoever was content');
select is(tests.outcome('s4', 'alice', 1, 'engine_failed'), 50, 'and then was not, is in the middle again');
select is(tests.outcome('s4', 'alice', 98, 'engine_failed'), 34, 'the share of good jobs counts');
select tests.pass_time('7 days');
select is(tests.outcome('s4', 'alice', 99), 56, 'of recent ones: after a week the old ones count half');
select is(tests.outcome('s5', 'mallory' || i, 1, 'engine_failed'), 50, 'nobody who has not paid talks it down') from generate_series(1, 3) i;
select tests.offer('a'), tests.offer('b'), tests.offer('s1'), tests.offer('s2');
select tests.weigh('{"outcomes": 1}');
select is(split_part(tests.order_of(tests.look()), ' ', 1), 's1', 'and jobs go to whom others were content with');

select is(infernet.prove_ledger() -> 'ok', 'true', 'the books are whole: ' || (infernet.prove_ledger() ->> 'faults'));
select * from finish();
rollback;
