-- What an owner's nodes earned: by day and month, of all nodes together, and what is not paid out.
begin;
\ir actors.psql
select no_plan();

select tests.set_clock('2026-11-23 12:00:00+00');
select tests.user('alice'), tests.user('dave'), tests.credit('alice', 100);
select tests.node('n1', 'carol'), tests.node('n2', 'carol'), tests.node('n3', 'dave');

create function tests.earnings(p_name text) returns jsonb
language sql as $$ select tests.as(p_name, 'public.my_earnings()') $$;

-- One job through one node.
create function tests.work(p_node text) returns numeric
language plpgsql as $$
declare
  v_job     uuid := gen_random_uuid();
  v_attempt uuid;
begin
  perform tests.online(p_node), tests.submit('alice', v_job);
  select a.id into v_attempt from public.job_attempts a where a.job_id = v_job;
  perform tests.start(p_node, v_attempt, '11111111-1111-4111-8111-111111111111');
  perform tests.complete(p_node, v_attempt, '11111111-1111-4111-8111-111111111111');
  perform tests.as(p_node, 'public.leave()');
  return (select a.earned from public.job_attempts a where a.id = v_attempt);
end $$;

select is(tests.earnings('carol'), '{"today": "0.000000000000", "days30": "0.000000000000", "pending": "0.000000000000"}', 'nothing at first');
create temp table earned as select tests.work('n1') as long_ago;
select cmp_ok(long_ago, '>', 0::numeric, 'a job earns') from earned;
select is((tests.earnings('carol') ->> 'today')::numeric, long_ago, 'today') from earned;

select tests.pass_time('12 hours');
select is((tests.earnings('carol') ->> 'today')::numeric, 0::numeric, 'at midnight UTC a new day begins');
select is((tests.earnings('carol') ->> 'days30')::numeric, long_ago, 'of the same month') from earned;

select tests.pass_time('29 days');
create temp table recent as select tests.work('n1') + tests.work('n2') as recently, tests.work('n3') as others;
select is((tests.earnings('carol') ->> 'today')::numeric, recently, 'the nodes of an owner count together') from recent;
select is((tests.earnings('carol') ->> 'days30')::numeric, recently + long_ago, 'with what is not yet 30 days old') from recent, earned;
select tests.pass_time('13 hours');
select is((tests.earnings('carol') ->> 'days30')::numeric, recently, 'what is older is not of these 30 days') from recent;
select is((tests.earnings('carol') ->> 'pending')::numeric, recently + long_ago, 'and pending as long as it is not paid out') from recent, earned;
select is((tests.earnings('dave') ->> 'pending')::numeric, others, 'another owner has their own') from recent;
select is((tests.earnings('alice') ->> 'pending')::numeric, 0::numeric, 'who only asks earns nothing');

-- A payout is not earned backwards, and one that comes back is not earned twice.
select infernet.post_transfer('00000000-0000-7000-8000-0000000000c1', 'payout',
  array[infernet.account('earned', tests.user('carol')), infernet.account('gateway', null)], array[-recently, recently]) from recent;
select is((tests.earnings('carol') ->> 'days30')::numeric, recently, 'a payout changes nothing of what was earned') from recent;
select is((tests.earnings('carol') ->> 'pending')::numeric, long_ago, 'and is no longer pending') from earned;
select infernet.post_transfer('00000000-0000-7000-8000-0000000000c2', 'payout_return',
  array[infernet.account('gateway', null), infernet.account('earned', tests.user('carol'))], array[-recently, recently]) from recent;
select is((tests.earnings('carol') ->> 'days30')::numeric, recently, 'nor does one that comes back') from recent;
select is((tests.earnings('carol') ->> 'pending')::numeric, recently + long_ago, 'which is pending again') from recent, earned;

select throws_ok($$select tests.earnings('n1')$$, 'PT401', null, 'a node asks node_status for its own');
select is((infernet.prove_ledger() ->> 'ok')::boolean, true, 'the books are whole');
select * from finish();
rollback;
