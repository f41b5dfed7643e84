-- What leaves, and when: nothing of what a job said is left in any table after its retention or its consumer's
-- word; then its record goes; the ledger stays and stays true.
begin;
\ir actors.psql
select no_plan();

select tests.set_clock('2026-11-01 12:00:00+00');
select tests.operator('olga'), tests.user('alice'), tests.user('bob'), tests.credit('alice', 10), tests.credit('bob', 10);
select tests.node('n1', 'carol'), tests.node('n2', 'dave');
select infernet.tick();

-- Each table of the database, but PostgreSQL's own, that has this text anywhere in a row.
create function tests.tables_with(p_text text) returns text
language plpgsql as $$
declare
  v_table text;
  v_found text[] := '{}';
  v_count bigint;
begin
  for v_table in
    select format('%I.%I', n.nspname, c.relname) from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'm') and n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast') and n.nspname not like 'pg_temp%' order by 1
  loop
    execute format('select count(*) from %s t where t::text like %L', v_table, '%' || p_text || '%') into v_count;
    if v_count > 0 then
      v_found := v_found || v_table;
    end if;
  end loop;
  return array_to_string(v_found, ' ');
end $$;
create function tests.job(p_number int) returns uuid
language sql as $$ select ('00000000-0000-7000-8000-0000000000' || lpad(p_number::text, 2, '0'))::uuid $$;
create function tests.attempt(p_job uuid) returns uuid
language sql as $$ select attempt_id from public.jobs where id = p_job $$;
create function tests.node_of(p_job uuid) returns text
language sql as $$ select provider_name from public.job_attempts where id = tests.attempt(p_job) $$;
create function tests.forget(p_name text, p_job uuid) returns jsonb
language sql as $$ select tests.as(p_name, format('public.forget_job(%L)', p_job)) $$;
create function tests.retry(p_job uuid) returns jsonb
language sql as $$ select tests.as('alice', format('public.retry_job(%L)', p_job)) $$;
create function tests.batch(p_batch uuid) returns jsonb
language sql as $$ select tests.as('alice', format('public.submit_batch(%L, ''m'', %L, p_title => ''XTITLEX'', p_max_cost => 0.1)', p_batch,
  '[{"messages":[{"role":"user","content":"XPROMPTX"}]},{"messages":[{"role":"user","content":"XPROMPTX"}]}]')) $$;
create function tests.total(p_node text) returns numeric
language sql as $$ select (tests.as(p_node, 'public.node_status()') #>> '{earnings,total}')::numeric $$;

-- One job whose words go everywhere that words can go: two nodes had it, the first failed with a message, the
-- second reported more than numbers, and the first then sent its result late.
create function tests.live(p_job uuid) returns void
language plpgsql as $$
declare
  v_first text;
  v_lost  uuid;
begin
  perform tests.as('alice', format('public.submit_job(%L, ''m'', %L, p_title => ''XTITLEX'', p_max_cost => 1)', p_job,
    '{"messages":[{"role":"user","content":"XPROMPTX"}]}'));
  v_first := tests.node_of(p_job);
  v_lost := tests.attempt(p_job);
  perform tests.start(v_first, v_lost, p_job);
  perform tests.as(v_first, format('public.fail_attempt(%L, %L, ''engine_failed'', ''it choked on XERRORX'')', v_lost, p_job));
  perform tests.start(tests.node_of(p_job), tests.attempt(p_job), p_job), tests.pass_time('1 second');
  perform tests.as(tests.node_of(p_job), format('public.complete_attempt(%L, %L, ''XOUTPUTX'', ''stop'', %L, %L)', tests.attempt(p_job), p_job,
    '{"input_tokens":5,"output_tokens":2,"note":"XUSAGEX"}',
    tests.receipt(tests.attempt(p_job), 'XOUTPUTX', 'stop', 5, 2) || '{"tags":[["note","XRECEIPTX"]]}'));
  perform tests.as(v_first, format('public.complete_attempt(%L, %L, ''XLATEX'', ''stop'', ''{"note":"XLATEX"}'', ''{"content":"XLATEX"}'')', v_lost, p_job));
  perform infernet.tick();
end $$;

-- ------------------------------------------------------------ forgotten by its consumer
select tests.online('n1', 4), tests.online('n2', 4);
select tests.live(tests.job(1));
select is(state::text, 'completed', 'a job has been through much') from public.jobs where id = tests.job(1);
select is(tests.tables_with('XPROMPTX'), 'public.job_contents', 'its prompt is in a table');
select is(tests.tables_with('XOUTPUTX'), 'public.job_contents', 'and its answer');
select is(tests.tables_with('XTITLEX'), 'public.jobs', 'and its title');
select is(tests.tables_with('XERRORX'), 'public.job_attempts', 'and what its node said when it failed');
select is(tests.tables_with('XUSAGEX') || ' ' || tests.tables_with('XRECEIPTX') || ' ' || tests.tables_with('XLATEX'),
  'public.job_attempts public.job_attempts infernet.late_results', 'and what nodes hid in usage and receipts');
create temp table before as select j.*, c.input_sha256, c.output_sha256, tests.balance('alice') as balance
from public.jobs j join public.job_contents c on c.job_id = j.id where j.id = tests.job(1);
select throws_ok(format('select tests.forget(%L, %L)', n, tests.job(1)), s, null, n || ' cannot forget it') from (values ('bob', 'PT404'), ('olga', 'PT404'), ('n1', 'PT401')) v (n, s);
select is(tests.forget('alice', tests.job(1)) ->> 'output', null, 'its consumer can');
select is(string_agg(m || ': ' || tests.tables_with(m), ', ') filter (where tests.tables_with(m) <> ''), null, 'nothing of its words is left in any table')
from unnest(array['XPROMPTX', 'XOUTPUTX', 'XTITLEX', 'XERRORX', 'XUSAGEX', 'XRECEIPTX', 'XLATEX']) m;
select is((c.input_sha256, c.output_sha256, j.cost, j.input_tokens, j.output_tokens), (b.input_sha256, b.output_sha256, b.cost, 5, 2), 'its hashes, usage and cost stay')
from before b join public.jobs j using (id) join public.job_contents c on c.job_id = j.id;
select is(reported, '{"input_tokens":5,"output_tokens":2}', 'and the numbers that its node reported') from public.job_attempts where id = tests.attempt(tests.job(1));
select is(tests.balance('alice'), b.balance, 'and nothing is paid back') from before b;
select is(tests.as('alice', format('public.explain_job(%L)', tests.job(1))) #>> '{chain,ok}', 'true', 'its history is whole');
select alike(tests.as('alice', format('public.explain_job(%L)', tests.job(1))) #>> '{story,3,what}', 'Attempt 1 on node n_ failed (engine_failed): The message has been deleted.%', 'and can be told');
select isnt(tests.forget('alice', tests.job(1)) ->> 'forgotten_at', null, 'forgetting twice is forgetting once');

-- An honest receipt stays: it has hashes alone.
select tests.submit('alice', tests.job(2)), tests.start(tests.node_of(tests.job(2)), tests.attempt(tests.job(2)), tests.job(2));
select tests.pass_time('1 second'), tests.complete(tests.node_of(tests.job(2)), tests.attempt(tests.job(2)), tests.job(2)), tests.forget('alice', tests.job(2));
select isnt(receipt, null, 'a receipt of hashes stays') from public.job_attempts where job_id = tests.job(2);
select ok(not infernet.plain_receipt(v.r), 'a receipt is not plain ' || what)
from (select receipt as r, (receipt ->> 'content')::jsonb as c from public.job_attempts where job_id = tests.job(2)) a
cross join lateral (values (a.r || '{"note":"x"}', 'with a field more'), (a.r || '{"tags":[["x"]]}', 'with tags'), (a.r || '{"sig":"words"}', 'with another signature'),
  (a.r || jsonb_build_object('content', (a.c || '{"note":"x"}')::text), 'with a field more in its content'),
  (a.r || jsonb_build_object('content', '{"job":"' || repeat('words ', 20) || '",' || substr(a.c::text, 2)), 'with a field said twice'),
  (a.r || jsonb_build_object('content', (a.c || '{"url":"what it said"}')::text), 'with another address'),
  (a.r || '{"content":"words"}', 'without a content')) v (r, what);

-- Only what has ended.
select tests.submit('alice', tests.job(3));
select throws_ok(format('select tests.forget(''alice'', %L)', tests.job(3)), 'PT409', format('Job %s is assigned.', tests.job(3)), 'what a node has is not forgotten');
select tests.start(tests.node_of(tests.job(3)), tests.attempt(tests.job(3)), tests.job(3));
select throws_ok(format('select tests.forget(''alice'', %L)', tests.job(3)), 'PT409', format('Job %s is running.', tests.job(3)), 'nor what runs');
select tests.as(n, 'public.heartbeat(p_draining => true)') from unnest(array['n1', 'n2']) n;
select tests.submit('alice', tests.job(4));
select throws_ok(format('select tests.forget(''alice'', %L)', tests.job(4)), 'PT409', format('Job %s is queued.', tests.job(4)), 'nor what waits');
select tests.as('alice', format('public.cancel_job(%L)', tests.job(4))), tests.forget('alice', tests.job(4));
select is(input, null, 'once cancelled it is') from public.job_contents where job_id = tests.job(4);
select tests.as(n, 'public.heartbeat()') from unnest(array['n1', 'n2']) n;
select tests.submit('alice', tests.job(5)), tests.as(tests.node_of(tests.job(5)), format('public.fail_attempt(%L, null, ''bad_request'', ''x'')', tests.attempt(tests.job(5))));
select is(jsonb_array_length(tests.as('alice', 'public.failed_jobs()') -> 'jobs'), 1, 'a failed job can be tried again');
select tests.forget('alice', tests.job(5));
select is(jsonb_array_length(tests.as('alice', 'public.failed_jobs()') -> 'jobs'), 0, 'a forgotten one cannot, and is not on the list');
select throws_ok(format('select tests.retry(%L)', tests.job(5)), 'PT409', null, 'nor by its id');

-- ------------------------------------------------------------ forgotten by time
select tests.live(tests.job(6));
select tests.batch(tests.job(50));
select is(tests.tables_with('XTITLEX'), 'public.batches public.jobs', 'a batch has a title too');
select tests.as('alice', format('public.cancel_batch(%L)', tests.job(50)));
select tests.pass_time('29 days'), tests.as('n1', 'public.heartbeat()'), infernet.tick();
select is(tests.tables_with('XPROMPTX'), 'public.job_contents', 'before its time nothing is forgotten');
select unalike(tests.as('olga', 'public.health()') ->> 'findings', '%contents of ended jobs%', 'nor overdue');
select tests.pass_time('3 days');
select alike(tests.as('olga', 'public.health()') ->> 'findings', '%contents of ended jobs are kept%', 'what is overdue is a finding');
select is(infernet.tick() -> 'retention', '{"forgotten":3,"deleted":0}', 'at its time the tick forgets');
select is(string_agg(m || ': ' || tests.tables_with(m), ', ') filter (where tests.tables_with(m) <> ''), null, 'and nothing of its words is left in any table')
from unnest(array['XPROMPTX', 'XOUTPUTX', 'XTITLEX', 'XERRORX', 'XUSAGEX', 'XRECEIPTX', 'XLATEX']) m;
select unalike(tests.as('olga', 'public.health()') ->> 'findings', '%contents of ended jobs%', 'nothing is overdue');
select is(infernet.tick() -> 'retention', '{"forgotten":0,"deleted":0}', 'and the next tick has nothing to do');
select ok((infernet.prove_ledger() ->> 'ok')::boolean, 'the books are whole');

-- ------------------------------------------------------------ records
create temp table totals as select n, tests.total(n) as earned from unnest(array['n1', 'n2']) n;
create temp table ledger as select count(*) as n, sum(abs(amount)) as turnover from public.ledger_entries;
select is(count(*), 4::bigint, 'late results and more are there') from (select from infernet.late_results union all select from infernet.experiences) x;
select tests.as('carol', format('public.command_node(%L, ''restart_engine'')', tests.subject('n1')));
select tests.pass_time('1 day'), infernet.tick();
update public.settings set value = '2' where key = 'retention_jobs';
update public.settings set value = '3' where key = 'record_days';
select is((select state::text from public.jobs where id = tests.job(3)), 'expired', 'one job ended later than the others');
select is(infernet.tick() -> 'retention', '{"forgotten":0,"deleted":2}', 'records go in chunks');
select infernet.tick(), infernet.tick(), infernet.tick(), infernet.tick();
select is(array_agg(id), array[tests.job(3)], 'a record is not shorter-lived than its contents') from public.jobs;
-- Messages have a retention of Realtime's own.
select is(regexp_replace(tests.tables_with(j.id::text), ' realtime[.]\S+', '', 'g'), 'public.ledger_holds public.ledger_transfers', 'of a job that is gone, the ledger alone knows') from (values (tests.job(1)), (tests.job(6))) j (id);
select is(count(*), 0::bigint, 'its batch is gone too') from public.batches;
select ok((infernet.prove_ledger() ->> 'ok')::boolean, 'the books are whole: ' || (infernet.prove_ledger() ->> 'faults'));
select is((select row(count(*), sum(abs(amount))) from public.ledger_entries), row(l.n, l.turnover), 'the ledger has what it had') from ledger l;
select is(tests.total(t.n), t.earned, 'what a node earned is what it was') from totals t;
select is(tests.as('olga', 'public.check_histories()') -> 'broken', '[]', 'no history is left without its job');
select throws_ok(format('select tests.submit(''alice'', %L)', tests.job(1)), 'PT409', null, 'the id of a job that is gone is not used again');
select throws_ok(format('select tests.batch(%L)', tests.job(50)), 'PT409', null, 'nor that of a batch');
select throws_ok($$update public.settings set value = '1000000' where key = 'content_days'$$, 'PT422', null, 'a retention is no longer than time');

-- ------------------------------------------------------------ a round that fails stops nothing else
select tests.pass_time('40 days');
create function tests.refuse() returns trigger language plpgsql as $$ begin raise exception 'not now'; end $$;
create trigger refuse before update on public.job_contents for each row execute function tests.refuse();
set local client_min_messages = error;
select is(t -> 'retention', '{"failed":"not now"}', 'a round that fails says so') from infernet.tick() t;
select is((select last_tick from infernet.pulse), infernet.clock(), 'and the tick goes on');
drop trigger refuse on public.job_contents;
select infernet.tick(), infernet.tick();
select is((select count(*) from infernet.late_results) + (select count(*) from infernet.experiences) + (select count(*) from public.node_commands where ended_at is not null), 0::bigint,
  'late results, experiences and commands are gone with them');
select is(count(*), 0::bigint, 'and the last job') from public.jobs;
select * from finish();
rollback;
