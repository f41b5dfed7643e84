-- With pg_cron the migrations schedule the tick; these run where pg_cron is.
begin;
select plan(4);
select results_eq(
  $$ select j.command, j.username::text, j.database::text, j.active from cron.job j where j.jobname = 'infernet-tick' $$,
  $$ values ('select infernet.tick()', 'postgres', 'postgres', true) $$,
  'the tick is scheduled once, as the owner of the schema, in this database');
select is((select count(*) from cron.job), 1::bigint, 'and nothing else is');
-- Seconds are taken from 1.5 on; before, a minute is the shortest.
select is((select j.schedule from cron.job j where j.jobname = 'infernet-tick'),
  case when (select substring(e.extversion from '^[0-9]+[.][0-9]+')::numeric from pg_extension e where e.extname = 'pg_cron') >= 1.5
    then '1 second' else '* * * * *' end, 'as often as this version can');
create function pg_temp.run_job() returns jsonb language plpgsql as $$
declare
  v_answer jsonb;
begin
  execute (select j.command from cron.job j where j.jobname = 'infernet-tick') into v_answer;
  return v_answer;
end $$;
select is(pg_temp.run_job() ->> 'ran', 'true', 'and what is scheduled ticks');
select * from finish();
rollback;
