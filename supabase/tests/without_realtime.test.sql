-- Before the Realtime server has made its tables, everything works, without wake-ups.
begin;
\ir actors.psql
select plan(5);
drop table realtime.messages cascade;
select tests.user('alice'), tests.credit('alice', 5), tests.node('n1', 'carol');
select tests.online('n1');
select is(infernet.install_realtime(), false, 'there is no Realtime yet');
select is(tests.submit('alice', '00000000-0000-7000-8000-000000000001') ->> 'state', 'assigned', 'jobs are assigned');
select is(jsonb_array_length(tests.as('n1', 'public.heartbeat()') -> 'attempts'), 1, 'and the heartbeat brings them');
select tests.start('n1', id, id) from public.job_attempts;
select is(tests.complete('n1', id, id) ->> 'job_state', 'completed', 'and they complete') from public.job_attempts;
select ok((infernet.tick() ->> 'ran')::boolean, 'the tick runs');
select * from finish();
rollback;
