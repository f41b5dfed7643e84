-- Login, enrolment, keys, rate limits, approvals.
begin;
\ir actors.psql
select plan(40);

select tests.set_clock('2026-11-01 12:00:00+00');
create function tests.login(p_event text, p_key text, p_kind text, p_at timestamptz default infernet.clock(), p_role text default null,
                            p_code text default null, p_name text default null) returns jsonb
language plpgsql as $$
declare
  v_result jsonb;
begin
  perform tests.be_role('service_role');
  v_result := public.consume_login(tests.key(p_event), tests.key(p_key), extract(epoch from p_at)::bigint, p_kind, p_role, p_code, p_name, '127.0.0.1');
  perform tests.be_nobody();
  return v_result;
end $$;

-- ------------------------------------------------------------ people
select is(tests.login('e1', 'alice', 'user') ->> 'kind', 'user', 'a new key becomes a new user');
select is((select count(*) from public.users), 1::bigint, 'with one row');
select is((select count(*) from public.ledger_accounts where party_id is not null), 3::bigint, 'and its accounts');
select throws_ok($$select tests.login('e1', 'alice', 'user')$$, 'PT401', 'This login was used before.', 'a login is used once');
select is(tests.login('e2', 'alice', 'user') ->> 'sub', tests.subject('alice')::text, 'the next login is the same user');
select throws_ok($$select tests.login('e3', 'alice', 'user', infernet.clock() - interval '2 minutes')$$, 'PT401', null, 'an old event is refused');
select throws_ok($$select tests.login('e4', 'alice', 'user', infernet.clock() + interval '2 minutes')$$, 'PT401',
  'The login is signed for a time 120 seconds away from the server''s clock.', 'one from the future too, and the message names the clock');
select throws_ok($$select public.consume_login('xyz', tests.key('alice'), extract(epoch from infernet.clock())::bigint, 'user')$$, '23514', null, 'an event id is 64 hex digits');
select throws_ok($$select public.consume_login(tests.key('e5'), 'xyz', extract(epoch from infernet.clock())::bigint, 'user')$$, '23514', null, 'a key is 64 hex digits');
update public.users set status = 'suspended';
select throws_ok($$select tests.login('e6', 'alice', 'user')$$, 'PT403', 'This account is suspended.', 'a suspended user is refused');
update public.users set status = 'active';

-- ------------------------------------------------------------ nodes
select throws_ok($$select tests.login('n1', 'node', 'node')$$, 'PT403', 'This node is not enrolled here.', 'a node needs an enrolment');
select is((select count(*) from infernet.keys where kind <> 'user'), 0::bigint, 'and leaves nothing behind without one');
create temp table code as select tests.as('alice', 'public.make_enrolment()') ->> 'code' as c;
select is((select count(*) from infernet.enrolments e, code where position(convert_to(c, 'UTF8') in e.digest) > 0), 0::bigint, 'the code itself is not stored');
select throws_ok(format($$select tests.login('n2', 'node', 'node', p_code => 'enrol-wrong')$$), 'PT403', 'This enrolment code is not known here.', 'a wrong code is refused');
select throws_ok(format($$select tests.login('n3', 'node', 'node', p_role => 'client', p_code => %L)$$, c), 'PT403', 'This enrolment code is for a provider.', 'the role is the code''s') from code;
select is(tests.login('n4', 'node', 'node', p_role => 'provider', p_code => c, p_name => E'attic\n') ->> 'role', 'provider', 'the code lets the node in') from code;
select is((select (name, owner_id, approval)::text from public.providers), format('(attic,%s,pending)', tests.subject('alice')), 'as its owner''s, cleaned of control characters, not yet approved');
select throws_ok(format($$select tests.login('n5', 'other', 'node', p_code => %L)$$, c), 'PT403', 'This enrolment code has been used.', 'a code works once') from code;
select is(tests.login('n6', 'node', 'node') ->> 'kind', 'node', 'an enrolled node logs in by its key');
select throws_ok($$select tests.login('n7', 'node', 'user')$$, 'PT403', 'This key belongs to a node.', 'a node''s key is no person''s');
select throws_ok($$select tests.login('n8', 'alice', 'node')$$, 'PT403', 'This key belongs to a person.', 'nor the other way round');
create temp table late as select tests.as('alice', 'public.make_enrolment(p_expires_secs => 60)') ->> 'code' as c;
select tests.pass_time('61 seconds');
select throws_ok(format($$select tests.login('n9', 'other', 'node', p_code => %L)$$, c), 'PT403', 'This enrolment code has expired.', 'a code expires') from late;
select throws_ok($$select tests.as('alice', 'public.make_enrolment(''king'')')$$, 'PT422', null, 'there are three roles');
select throws_ok($$select tests.as('alice', 'public.make_enrolment(p_expires_secs => 0)')$$, 'PT422', null, 'a code lives at least a second');
select throws_ok($$select tests.as('node', 'public.make_enrolment()')$$, 'PT401', null, 'a node cannot enrol others');
select is(tests.login('c1', 'kiosk', 'node', p_code => (tests.as('alice', 'public.make_enrolment(''client'')') ->> 'code')) ->> 'role', 'client', 'clients enrol the same way');
select is((select count(*) from public.clients), 1::bigint, 'into their own table');

-- ------------------------------------------------------------ approval
select is(tests.as('node', $$public.register_node('{}', '[{"model":"m"}]', '1')$$) ->> 'approval', 'pending', 'a pending node registers');
select is((select approved from public.offers), false, 'and its offers wait');
select throws_ok($$select tests.as('alice', format('public.set_node_approval(%L, %L)', tests.subject('node'), 'approved'))$$, 'PT403', 'Only an operator may do this.', 'its owner cannot approve it');
select tests.operator('olga');
select is(tests.as('olga', format('public.set_node_approval(%L, %L)', tests.subject('node'), 'approved')) ->> 'approval', 'approved', 'an operator can');
select is((select approved and listed from public.offers), true, 'and its offers follow');
select tests.as('olga', format('public.set_node_approval(%L, %L)', tests.subject('node'), 'revoked'));
select throws_ok($$select tests.login('r1', 'node', 'node')$$, 'PT403', 'This node was revoked.', 'a revoked node cannot log in');
select throws_ok($$select tests.as('node', 'public.heartbeat()')$$, 'PT403', null, 'and its token is worth nothing');
select is(tests.login('o1', 'home', 'node', p_code => (tests.as('olga', 'public.make_enrolment()') ->> 'code')) ->> 'role', 'provider', 'an operator''s own node');
select is((select approval::text from public.providers where id = tests.subject('home')), 'approved', 'needs no approval');

-- ------------------------------------------------------------ nobody, limits
select tests.be_nobody(), set_config('request.jwt.claims', jsonb_build_object('sub', gen_random_uuid(), 'role', 'authenticated')::text, true);
select throws_ok('select infernet.whoami()', 'PT401', null, 'a token without a row is nobody');
select tests.be_nobody();
select is(tests.as('olga', 'public.whoami()') ->> 'operator', 'true', 'an operator knows it is one');
do $$ begin for i in 1 .. 30 loop perform tests.login('flood' || i, 'flooder', 'user'); end loop; end $$;
select throws_ok($$select tests.login('flood31', 'flooder', 'user')$$, 'PT429', 'Too many requests.', 'logins of one key are limited');
select tests.pass_time('1 minute');
select lives_ok($$select tests.login('flood32', 'flooder', 'user')$$, 'for a minute');
select * from finish();
rollback;
