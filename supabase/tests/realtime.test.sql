-- Realtime: who may hear and speak where, what SQL sends, and that all works without it.
begin;
\ir actors.psql
select no_plan();

select tests.operator('olga'), tests.user('alice'), tests.user('bob'), tests.user('carol');
select tests.node('n1', 'carol'), tests.node('n2', 'dave');
select tests.credit('alice', 5);
select tests.online('n1');
select tests.submit('alice', '00000000-0000-7000-8000-000000000001');
select tests.submit('alice', '00000000-0000-7000-8000-000000000002');

create function tests.topic(p_topic text) returns text
language sql security definer as $$
  select case p_topic when 'job' then 'job:' || tests.subject('alice') || ':00000000-0000-7000-8000-000000000001'
                      when 'waiting' then 'job:' || tests.subject('alice') || ':00000000-0000-7000-8000-000000000002'
                      when 'stolen' then 'job:' || tests.subject('bob') || ':00000000-0000-7000-8000-000000000001'
                      when 'node' then 'node:' || tests.subject('n1')
                      when 'owner' then 'owner:' || tests.subject('carol') else p_topic end
$$;
-- What the Realtime server does to find out: a probe row, seen under the caller's claims or not; a write tried and undone.
create function tests.hears(p_actor text, p_topic text) returns boolean
language plpgsql as $$
declare
  v_topic text := tests.topic(p_topic);
  v_seen  boolean;
begin
  begin
    perform set_config('realtime.topic', v_topic, true);
    insert into realtime.messages (topic, extension, private) values (v_topic, 'broadcast', true);
    case p_actor when 'anon' then perform tests.be_role('anon');
      when 'ghost' then perform set_config('request.jwt.claims', '{"sub":"99999999-9999-4999-8999-999999999999","role":"authenticated"}', true); set local role authenticated;
      else perform tests.be(p_actor); end case;
    select exists (select from realtime.messages where topic = v_topic and extension = 'broadcast') into v_seen;
    raise exception sqlstate 'ZZ000';
  exception when sqlstate 'ZZ000' then
    perform tests.be_nobody();
    return v_seen;
  end;
end $$;
create function tests.speaks(p_actor text, p_topic text) returns boolean
language plpgsql as $$
declare
  v_topic text := tests.topic(p_topic);
begin
  begin
    perform set_config('realtime.topic', v_topic, true);
    case p_actor when 'anon' then perform tests.be_role('anon');
      when 'ghost' then perform set_config('request.jwt.claims', '{"sub":"99999999-9999-4999-8999-999999999999","role":"authenticated"}', true); set local role authenticated;
      else perform tests.be(p_actor); end case;
    insert into realtime.messages (topic, extension, private) values (v_topic, 'broadcast', true);
    raise exception sqlstate 'ZZ000';
  exception when sqlstate 'ZZ000' then
    perform tests.be_nobody();
    return true;
  when insufficient_privilege then
    perform tests.be_nobody();
    return false;
  end;
end $$;
create temp table expected (topic text, hear text[], speak text[]);
insert into expected values
  ('job',            '{alice,n1}', '{alice,n1}'),
  ('waiting',        '{alice}',    '{alice}'),
  ('stolen',         '{bob}',      '{bob}'),
  ('node',           '{n1}',       '{}'),
  ('owner',          '{carol}',    '{}'),
  ('operator:fleet', '{olga}',     '{}'),
  ('operator:other', '{}',         '{}'),
  ('job:x:y',        '{}',         '{}'),
  ('node:',          '{}',         '{}'),
  ('anything',       '{}',         '{}'),
  ('',               '{}',         '{}');
select is(tests.hears(a, topic), a = any (hear), format('%s %s hear %L', a, case when a = any (hear) then 'may' else 'may not' end, topic))
from expected, unnest(array['alice', 'bob', 'carol', 'olga', 'n1', 'n2', 'ghost', 'anon']) a;
select is(tests.speaks(a, topic), a = any (speak), format('%s %s speak on %L', a, case when a = any (speak) then 'may' else 'may not' end, topic))
from expected, unnest(array['alice', 'bob', 'carol', 'olga', 'n1', 'n2', 'ghost', 'anon']) a;

-- ------------------------------------------------------------ who ran a job once is a stranger afterwards
create temp table run as select id from public.job_attempts;
select tests.start('n1', id, id) from run;
select ok(tests.hears('n1', 'job'), 'the node that runs a job hears its topic');
select tests.complete('n1', id, id) from run;
select ok(not tests.hears('n1', 'job') and not tests.speaks('n1', 'job'), 'and not when it has ended');
update public.users set status = 'suspended' where id = tests.subject('alice');
select ok(not tests.hears('alice', 'job'), 'a suspended consumer hears nothing');
update public.users set status = 'active';

-- ------------------------------------------------------------ what SQL sends
delete from realtime.messages;
create function tests.sent() returns setof text
language sql as $$ select event || ' ' || split_part(topic, ':', 1) || ' ' || coalesce(payload ->> 'state', '') from realtime.messages order by inserted_at, event $$;
select tests.online('n1', 5);
delete from realtime.messages;
select tests.submit('alice', '00000000-0000-7000-8000-000000000004');
select results_eq('select * from tests.sent()', array['attempt node '], 'a submit wakes the node it chose, and nobody else');
select is((select payload - 'id' from realtime.messages), (select jsonb_build_object('attempt', id, 'job', job_id) from public.job_attempts
  where job_id = '00000000-0000-7000-8000-000000000004'), 'with ids, and nothing of the prompt');
select ok((select private from realtime.messages), 'privately');
delete from realtime.messages;
select tests.start(provider_name, id, id) from public.job_attempts where job_id = '00000000-0000-7000-8000-000000000004';
select is_empty('select * from tests.sent()', 'the start of a job that its submit assigned is no news');
select tests.as('alice', 'public.cancel_job(''00000000-0000-7000-8000-000000000004'')');
select results_eq('select * from tests.sent()', array['cancel node '], 'a cancellation is told to the node');
delete from realtime.messages;
select tests.complete(provider_name, id, id, 'x', 'cancelled') from public.job_attempts where job_id = '00000000-0000-7000-8000-000000000004';
select ok((select 'state job cancelled' in (select * from tests.sent())), 'the end of a job to its consumer');
delete from realtime.messages;
select tests.as('olga', format('public.set_node_approval(%L, ''suspended'')', tests.subject('n1')));
select set_eq('select * from tests.sent()', array['node owner ', 'node operator '], 'a suspension to owner and operators');

-- ------------------------------------------------------------ install_realtime, again and later
select ok(infernet.install_realtime(), 'installing again changes nothing');
select is((select count(*) from pg_policies where schemaname = 'realtime' and policyname like 'infernet\_%'), 2::bigint, 'two policies stand');
drop policy infernet_send on realtime.messages;
select infernet.tick();
select is((select count(*) from pg_policies where schemaname = 'realtime' and policyname like 'infernet\_%'), 2::bigint, 'the tick puts back what is missing');
select * from finish();
rollback;
