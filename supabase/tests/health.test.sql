-- What an operator is told about the control plane itself.
begin;
\ir actors.psql
select no_plan();

select tests.set_clock('2026-11-01 12:00:00+00');
select tests.operator('olga'), tests.user('alice'), tests.credit('alice', 10), tests.node('n1', 'carol');
create function tests.findings() returns text
language sql as $$ select coalesce(string_agg(f ->> 'level' || ': ' || (f ->> 'what'), e'\n'), '')
  from jsonb_array_elements(tests.as('olga', 'public.health()') -> 'findings') f $$;

select matches(tests.findings(), 'error: The tick has never run', 'an installation without a tick is told so');
select infernet.tick();
select tests.online('n1');
select unalike(tests.findings(), '%tick%', 'nothing is said of a tick that runs');
select is(tests.as('olga', 'public.health()') #> '{nodes,online}', '1', 'nodes are counted');
select tests.pass_time('10 seconds');
select matches(tests.findings(), 'warning: The tick last ran 10 s ago', 'a tick that lags is a warning');
select tests.pass_time('2 minutes');
select matches(tests.findings(), 'error: The tick last ran', 'and then an error');
select is(tests.as('olga', 'public.health()') ->> 'level', 'error', 'as which the whole is judged');
select infernet.tick(), tests.as('n1', 'public.heartbeat()'), tests.pass_time('20 seconds'), tests.as('n1', 'public.heartbeat()'), infernet.tick();

select tests.as('n1', 'public.heartbeat(p_draining => true)');
select tests.submit('alice'), tests.submit('alice');
select unalike(tests.findings(), '%wait for m%', 'a job that has just come is no finding');
select is(tests.as('olga', 'public.health()') #> '{queue,waiting}', '2', 'but counted');
select tests.pass_time('2 minutes'), infernet.tick();
select matches(tests.findings(), 'warning: Jobs that wait for m, which no node online serves: 2, the oldest for 2 min', 'jobs that no node serves are a finding');
select is(tests.as('olga', 'public.health()') #> '{queue,models,0}', '{"model":"m","online":0,"waiting":2,"oldest_secs":120}', 'with their model');

select tests.note_fault(tests.subject('n1'), 'engine_failed', infernet.clock() - make_interval(secs => s)) from generate_series(3, 1, -1) s;
select tests.as('n1', 'public.heartbeat()'), infernet.tick();
select matches(tests.findings(), 'warning: Nodes that are paused, .* 1 of 1', 'paused nodes are a finding');
select tests.node('n2', 'carol', 'pending');
select matches(tests.findings(), 'info: Nodes that wait for approval: 1', 'nodes without approval are told of');
select ok(f ->> 'hint' <> '', 'a hint says what to do: ' || (f ->> 'what'))
from jsonb_array_elements(tests.as('olga', 'public.health()') -> 'findings') f;

select ok(h -> 'database' -> 'tables' @> '[{"table":"public.jobs"}]', 'the hot tables are shown') from tests.as('olga', 'public.health()') h;
select is(h #>> '{database,autovacuum,on}', 'true', 'autovacuum is on') from tests.as('olga', 'public.health()') h;
select isnt(h #>> '{database,sees_all_sessions}', null, 'it says whether it sees other sessions') from tests.as('olga', 'public.health()') h;
select tests.be_role('service_role');
select ok(public.health() ? 'level', 'service_role asks too');
select tests.be_nobody();
select is(infernet.span(s), t, 'a span of ' || t) from (values (5, '5 s'), (119, '119 s'), (300, '5 min'), (7200, '2 h'), (864000, '10 days')) v (s, t);

-- ------------------------------------------------------------ the overview
select is(tests.as('alice', 'public.overview()') #>> '{models,0,name}', 'm', 'a small market is counted when asked');
select is((select value from infernet.overview_kept), null, 'and nothing is kept');
update public.settings set value = '0' where key = 'overview_kept_offers';
select infernet.tick();
select isnt((select value from infernet.overview_kept), null, 'a large one is kept by the tick');
update public.models set visibility = 'hidden' where name = 'm';
select is(tests.as('alice', 'public.overview()') #>> '{models,0,name}', 'm', 'and told as it was then');
select is((tests.as('alice', 'public.overview()') ->> 'as_of')::timestamptz, infernet.clock(), 'with the time');
select tests.pass_time('16 seconds'), infernet.tick();
select is(tests.as('alice', 'public.overview()') -> 'models', '[]', 'until it is counted again');
select tests.pass_time('3 minutes');
update public.models set visibility = 'public' where name = 'm';
select is(tests.as('alice', 'public.overview()') #>> '{models,0,name}', 'm', 'where the tick does not run, it is counted when asked');

select * from finish();
rollback;
