-- What went wrong in markets before this one, each as a test of ours: jobs that run twice or are stuck for
-- good, results paid twice, nodes that talk themselves up, keys that anybody can claim, privacy that is
-- a column nobody reads. Races for the same are in tests/it/market/races.rs and collisions.rs.
begin;
\ir actors.psql
select plan(53);

select tests.set_clock('2026-11-01 12:00:00+00');
select tests.user('alice'), tests.credit('alice', 10), tests.operator('olga');
select tests.node('n1', 'carol'), tests.node('n2', 'dave');
select infernet.tick();

create function tests.job(p_job uuid) returns jsonb
language sql as $$ select tests.as('alice', format('public.get_job(%L)', p_job)) $$;
create function tests.attempt(p_job uuid) returns uuid
language sql as $$ select (tests.job(p_job) #>> '{attempt,id}')::uuid $$;
create function tests.runner(p_job uuid) returns text
language sql as $$ select tests.job(p_job) #>> '{attempt,node,name}' $$;
-- A heartbeat of a node, naming what it runs.
create function tests.beat(p_node text, p_running uuid[] default '{}') returns jsonb
language sql as $$ select tests.as(p_node, format('public.heartbeat(%L)', p_running)) $$;

-- ------------------------------------------------------------ a long job is not run again beside itself
select tests.online('n1', 2), tests.submit('alice', '00000000-0000-7000-8000-000000000001');
select tests.start('n1', tests.attempt('00000000-0000-7000-8000-000000000001'), '11111111-1111-4111-8111-111111111111');
select tests.online('n2', 2);
create temp table long as select tests.attempt('00000000-0000-7000-8000-000000000001') as id;
create function tests.minute() returns jsonb
language plpgsql as $$
declare
  v_offered jsonb := '[]';
begin
  for i in 1 .. 12 loop
    perform tests.pass_time('5 seconds');
    v_offered := v_offered || (tests.beat('n1', array[(select id from long)]) -> 'attempts') || (tests.beat('n2') -> 'attempts')
              || (tests.as('n2', 'public.claim_attempts()') -> 'attempts');
    perform infernet.tick();
  end loop;
  return v_offered;
end $$;
select is(tests.minute(), '[]', 'a job that runs for a minute is offered to nobody meanwhile');
select is(tests.job('00000000-0000-7000-8000-000000000001') ->> 'state', 'running', 'it runs');
select is((select count(*) from public.job_attempts), 1::bigint, 'in one attempt');
select throws_ok(format('select tests.start(%L, %L, %L)', 'n1', id, gen_random_uuid()), 'PT409', 'This attempt runs under another lease.',
  'a second agent with the node''s key cannot run it too') from long;
select throws_ok(format('select tests.start(%L, %L, %L)', 'n2', id, gen_random_uuid()), 'PT404', null, 'nor can another node') from long;
select throws_ok($$insert into infernet.live_attempts select job_id, gen_random_uuid(), offer_id, provider_id, consumer_id, due_at
  from infernet.live_attempts$$,
  '23505', null, 'a second live attempt cannot even be written');

-- ------------------------------------------------------------ the result of a job counts once
create temp table first_result as select tests.complete('n1', id, '11111111-1111-4111-8111-111111111111') as r from long;
select is(r ->> 'accepted', 'true', 'a result is taken') from first_result;
create temp table paid as select tests.balance('alice') as alice, tests.balance('carol', 'earned') as carol;
select is(tests.complete('n1', id, '11111111-1111-4111-8111-111111111111') ->> 'reason', 'repeated', 'a repeated one is answered again') from long;
select is(tests.complete('n1', id, '11111111-1111-4111-8111-111111111111', 'something else') ->> 'reason', 'repeated', 'also with another text') from long;
select is(tests.complete('n1', id, gen_random_uuid()) ->> 'reason', 'fenced', 'one under another lease is not') from long;
select is(tests.as('n1', format('public.fail_attempt(%L, %L, ''engine_failed'')', id, '11111111-1111-4111-8111-111111111111')) ->> 'accepted', 'false',
  'nor is a failure afterwards') from long;
select is(tests.as('alice', 'public.cancel_job(''00000000-0000-7000-8000-000000000001'')') ->> 'state', 'completed', 'cancelling afterwards changes nothing');
select is(tests.job('00000000-0000-7000-8000-000000000001') ->> 'output', 'hello world', 'the first text stays');
select is((tests.balance('alice'), tests.balance('carol', 'earned')), (alice, carol), 'nobody paid or earned more') from paid;
select is((select count(*) from public.ledger_transfers where kind = 'capture'), 1::bigint, 'there is one payment');

-- ------------------------------------------------------------ a dead node's job is not stuck
select tests.as('n2', 'public.leave()');
select tests.submit('alice', '00000000-0000-7000-8000-000000000002');
create temp table dead as select tests.attempt('00000000-0000-7000-8000-000000000002') as id;
select tests.start('n1', id, '22222222-2222-4222-8222-222222222222') from dead;
select tests.pass_time('8 seconds'), infernet.tick(), tests.pass_time('8 seconds'), infernet.tick();
select is(tests.job('00000000-0000-7000-8000-000000000002') ->> 'state', 'queued', 'a job of a node that died waits again within a lease');
select tests.online('n2');
select is(tests.runner('00000000-0000-7000-8000-000000000002'), 'n2', 'the next node to come gets it at once');
select is(tests.complete('n1', id, '22222222-2222-4222-8222-222222222222') ->> 'reason', 'fenced', 'the dead node''s result comes late') from dead;
select is((tests.balance('alice', 'held') > 0, tests.balance('carol', 'earned')), (true, carol), 'and earns nothing') from paid;
select is(tests.beat('n1', array[id]) #>> '{lost,0}', id::text, 'it is told so') from dead;
-- Each node dies on it in turn.
create function tests.die() returns text
language plpgsql as $$
declare
  v_job  uuid := '00000000-0000-7000-8000-000000000002';
  v_node text;
begin
  for i in 1 .. 10 loop
    exit when tests.job(v_job) ->> 'state' not in ('queued', 'assigned');
    perform tests.online('n1'), tests.online('n2');
    perform infernet.tick();
    if tests.job(v_job) ->> 'state' = 'assigned' then
      v_node := tests.runner(v_job);
      perform tests.start(v_node, tests.attempt(v_job), gen_random_uuid());
    end if;
    perform tests.pass_time('8 seconds'), infernet.tick(), tests.pass_time('8 seconds'), infernet.tick();
    -- The node that died last may try again only after a while.
    perform tests.pass_time('8 seconds'), infernet.tick();
  end loop;
  return tests.job(v_job) ->> 'state';
end $$;
select is(tests.die(), 'failed', 'a job on which every node dies is not tried for ever');
select is((select count(*) from public.job_attempts where job_id = '00000000-0000-7000-8000-000000000002'),
  (select (value #>> '{}')::bigint from public.settings where key = 'max_attempts'), 'but as often as the settings say');
select is(tests.job('00000000-0000-7000-8000-000000000002') #>> '{error,code}', 'node_lost', 'it is kept with its reason');
select is(tests.balance('alice', 'held'), 0::numeric, 'and its money is free');

-- ------------------------------------------------------------ a job that found nobody is not forgotten
select tests.as('n1', 'public.leave()'), tests.as('n2', 'public.leave()');
select is(tests.submit('alice', '00000000-0000-7000-8000-000000000003') #>> '{waiting,code}', 'no_node_online', 'a job may come before its node');
select tests.pass_time('60 seconds'), infernet.tick();
select tests.online('n1');
select is(tests.runner('00000000-0000-7000-8000-000000000003'), 'n1', 'and is given away when one comes');
select tests.as('alice', 'public.cancel_job(''00000000-0000-7000-8000-000000000003'')');

-- ------------------------------------------------------------ nobody's word about himself steers anything
create temp table boast as
select tests.as('n2', format('public.register_node(%L, %L, %L)',
  '{"platform":"linux","tokens_per_second":999999,"load":0,"reputation":100,"speed":1e9,"gpus":[{"vendor":"nvidia","model":"H100","vram_tier":"80GB","tflops":9e9}]}',
  '[{"model":"m","slots":2,"price_input":1,"price_output":2,"speed":1e9,"reputation":100,"busy":0,"approved":true}]', '1')) as r;
select is((select specs from public.providers where name = 'n2') - 'platform' - 'gpus', '{}', 'of an inventory only what is known is kept');
select is((select array_agg(k order by k) from public.providers p, jsonb_object_keys(p.specs #> '{gpus,0}') k where p.name = 'n2'), '{model,vendor,vram_tier}',
  'also of a card');
select is((select reputation from public.providers where name = 'n2'), (select reputation from public.providers where name = 'n1'), 'no node names its own reputation');
select throws_ok(format($$select tests.as('n2', format('public.register_node(%%L)', %L))$$, jsonb_build_object('platform', repeat('x', 9000))), 'PT413', null,
  'a large inventory is refused');
select throws_ok(format($$select tests.as('n2', format('public.register_node(%%L)', %L))$$,
  jsonb_build_object('gpus', (select jsonb_agg('{"vendor":"a","model":"b","vram_tier":"1GB"}'::jsonb) from generate_series(1, 65)))), 'PT422', null, 'a machine has 64 cards at most');
select throws_ok($$select tests.as('n2', $q$public.register_node('{"platform":{"a":{"b":1}}}')$q$)$$, 'PT422', null, 'and no nested things where words belong');
select tests.as('n1', 'public.leave()'), tests.online('n2', 2);
select tests.submit('alice', '00000000-0000-7000-8000-000000000004', 1000);
create temp table quick as select tests.attempt('00000000-0000-7000-8000-000000000004') as id;
select tests.start('n2', id, '44444444-4444-4444-8444-444444444444') from quick;
select tests.pass_time('1 second');
create temp table claimed as
select tests.complete('n2', id, '44444444-4444-4444-8444-444444444444', 'hello world', 'stop', 100000, 100000) as r from quick;
select is((r #>> '{usage,output_tokens}')::int, 11, 'of 100000 tokens claimed, no more count than the text has bytes') from claimed;
select ok((r #>> '{usage,input_tokens}')::int < 300, 'and no more input than the prompt can be') from claimed;
select ok(coalesce((select (to_jsonb(l) ->> 'speed')::numeric from infernet.offer_load l join public.offers o on o.id = l.offer_id
                    where o.provider_id = tests.subject('n2')), 0) <= 11, 'its speed is what the server saw: at most 11 tokens in a second');
select is((select count(*) from public.ledger_transfers where kind = 'capture'), 2::bigint, 'and it is paid for that');

-- ------------------------------------------------------------ a key is one node's, from the beginning
create function tests.login(p_event text, p_key text, p_code text default null) returns jsonb
language plpgsql as $$
declare
  v_at     bigint := extract(epoch from infernet.clock())::bigint;
  v_result jsonb;
begin
  perform tests.be_role('service_role');
  v_result := public.consume_login(tests.key(p_event), tests.key(p_key), v_at, 'node',
                                   case when p_code is not null then 'provider' end, p_code, null, '127.0.0.1');
  perform tests.be_nobody();
  return v_result;
end $$;
select throws_ok($$insert into public.providers (id, owner_id, public_key, name) values (gen_random_uuid(), tests.user('carol'), null, 'x')$$,
  '23502', null, 'there is no node without a key');
select throws_ok($$insert into public.providers (id, owner_id, public_key, name)
  select gen_random_uuid(), tests.user('eve'), public_key, 'x' from public.providers limit 1$$, '23505', null, 'nor a second one with the same key');
select throws_ok($$insert into public.providers (id, owner_id, public_key, name) values (gen_random_uuid(), tests.user('eve'), tests.key('nobody'), 'x')$$,
  '23503', null, 'nor one with a key that was never enrolled');
select throws_ok($$insert into infernet.keys select public_key, gen_random_uuid(), 'user' from infernet.keys where kind = 'provider' limit 1$$,
  '23505', null, 'a key has one subject');
select throws_ok($$select tests.login('k1', 'stranger')$$, 'PT403', 'This node is not enrolled here.', 'a key that nobody enrolled gets nothing');
create temp table codes as select tests.as('carol', 'public.make_enrolment()') ->> 'code' as carols, tests.as('dave', 'public.make_enrolment()') ->> 'code' as daves;
create temp table bound as select tests.login('k2', 'n9', carols) as r from codes;
select is((select owner_id from public.providers where id = (r ->> 'sub')::uuid), tests.user('carol'), 'a code binds a key to its owner') from bound;
select is(tests.login('k3', 'n9', daves) ->> 'sub', r ->> 'sub', 'with somebody else''s code the key stays the same node') from bound, codes;
select is((select owner_id from public.providers where id = (r ->> 'sub')::uuid), tests.user('carol'), 'and its owner''s') from bound;
select throws_ok(format('select tests.login(%L, %L, %L)', 'k4', 'n10', carols), 'PT403', 'This enrolment code has been used.', 'one code binds one key') from codes;
select throws_ok($$select tests.as('eve', format('public.complete_attempt(%L, %L, %L, %L, %L, %L)', gen_random_uuid(), gen_random_uuid(), '', 'stop', '{}', '{}')) from (select tests.user('eve')) e$$,
  'PT403', null, 'and no person can act as a node');

-- ------------------------------------------------------------ a private node is in no public list
select tests.online('n1'), tests.online('n2');
create function tests.public_sees() returns text[]
language plpgsql as $$
declare
  v_names  text[];
  v_offers text[];
begin
  perform tests.be_role('anon');
  select array_agg(c.name order by c.name) into v_names from public.provider_cards() c;
  select array_agg(o.provider_id::text) into v_offers from public.offers o;
  perform tests.be_nobody();
  return v_names || (select array_agg('offer of ' || p.name order by p.name) from public.providers p where p.id::text = any (v_offers));
end $$;
select is(tests.public_sees(), '{n1,n2,"offer of n1","offer of n2"}', 'the public sees nodes and their offers');
update public.providers set is_public = false where name = 'n1';
select is(tests.public_sees(), '{n2,"offer of n2"}', 'but not of a node that is private');
select tests.online('n1');
select is(tests.public_sees(), '{n2,"offer of n2"}', 'also when it comes again');
select is(tests.as('olga', format('public.set_node_approval(%L, ''approved'')', tests.subject('n1'))) ->> 'approval', 'approved', 'and when it is approved again');
select is(tests.public_sees(), '{n2,"offer of n2"}', 'it stays private');
select tests.be_role('anon');
select throws_ok('select name from public.providers', '42501', null, 'the table itself is not the public''s to read');
select tests.be_nobody();

select is(infernet.prove_ledger() -> 'ok', 'true', 'the books are whole');
select * from finish();
rollback;
