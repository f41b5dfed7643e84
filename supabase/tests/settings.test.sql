-- The market's dials: what is refused, and that code and table name the same ones.
begin;
\ir actors.psql
select no_plan();

select tests.operator('olga'), tests.user('alice');
create function tests.set(p_key text, p_value jsonb) returns jsonb
language sql as $$ select tests.as('olga', format('public.set_setting(%L, %L)', p_key, p_value)) $$;

-- ------------------------------------------------------------ what is refused
select throws_ok(format('select tests.set(%L, %L)', v.key, v.value), 'PT422', null, format('%s cannot be %s', v.key, v.value))
from (values
  ('weights', '1'), ('weights', '[]'), ('weights', 'null'), ('weights', '{"prize": 1}'), ('weights', '{"price": "1"}'),
  ('weights', '{"price": null}'), ('weights', '{"price": true}'), ('weights', '{"price": {"a": 1}}'), ('weights', '{"price": -1}'),
  ('weights', '{"price": 1, "speed": 1e300}'),
  ('fee_rate', '1.01'), ('fee_rate', '-0.01'), ('fee_rate', '"0.05"'), ('fee_rate', 'null'),
  ('node_approval', '"never"'), ('node_approval', 'true'), ('name', '""'), ('name', '1'),
  ('open_models', '"yes"'), ('open_models', '1'), ('input_keys', '{}'), ('input_keys', '[1]'), ('input_keys', '"stop"'),
  ('max_attempts', '0'), ('max_attempts', '3000000000'), ('candidates_max', '0'), ('candidates_max', '-1'), ('speed_reference', '0'),
  ('lease_secs', '0'), ('lease_secs', '"15"'), ('tick_jobs', '0'), ('tick_models', '0'), ('line_window', '0'), ('queued_limit', '-1'),
  ('price_max', '"NaN"'), ('retry_secs', '-2'), ('deadline_secs_max', '0')) as v (key, value);
select throws_ok($$select tests.set('weigths', '1')$$, 'PT404', 'There is no setting weigths.', 'an unknown setting is refused');
select throws_ok($$select tests.as('alice', 'public.set_setting(''fee_rate'', ''0'')')$$, 'PT403', null, 'nobody but an operator sets one');
select throws_ok($$update public.settings set value = '{"prize": 1}' where key = 'weights'$$, 'PT422', null, 'in Studio the same is refused');
select is(infernet.settings_now() -> 'weights' ->> 'price', '1', 'and what was refused holds nowhere');

-- ------------------------------------------------------------ what is taken holds at once
select is(tests.set('weights', '{"price": 0.5, "load": 2}') ->> 'key', 'weights', 'weights may be left out');
select is(infernet.weights(infernet.settings_now()), row(0.5, 0, 0, 0, 2, 0, 0, 0)::infernet.weights, 'then they weigh nothing');
select is(tests.set('weights', '{}') ->> 'key', 'weights', 'all of them');
select is(tests.set(v.key, v.value::jsonb) -> 'value', v.value::jsonb, format('%s may be %s', v.key, v.value))
from (values ('fee_rate', '0'), ('fee_rate', '1'), ('heartbeat_secs', '0.2'), ('max_attempts', '1'), ('queued_limit', '0'), ('running_limit', '0'),
             ('retry_secs', '0'), ('fault_limit', '0'), ('node_approval', '"auto"'), ('input_keys', '["messages"]'), ('open_models', 'false')) as v (key, value);
select is(infernet.settings_now(), (select jsonb_object_agg(key, value) from public.settings), 'the copy that is read is the table');
select is_empty($$select a.attname from pg_attribute a where a.attrelid = 'infernet.weights'::regclass
  and pg_get_functiondef('infernet.check_setting()'::regprocedure) not like '%''' || a.attname || '''%'$$, 'each weight of the score can be set');

-- ------------------------------------------------------------ code and table name the same settings
create function tests.sources() returns table (name text, source text)
language sql as $$
  select p.oid::regprocedure::text, pg_get_functiondef(p.oid) from pg_proc p join pg_namespace n on n.oid = p.pronamespace
  where n.nspname in ('infernet', 'public') and p.prokind = 'f' and p.prolang <> (select oid from pg_language where lanname = 'c')
$$;
-- What a function reads out of all settings (p_settings -> 'x', v_set ->> 'x', r.value -> 'x', secs(…, 'x')) or by name (setting_int('x')).
create function tests.settings_read() returns table (name text, key text)
language sql as $$
  select s.name, m[1] from tests.sources() s,
    regexp_matches(s.source, $re$(?:\m[pv]_set(?:tings)?\M\)?|settings_now\(\)\)?|\mr\.value) ->>? '([a-z0-9_]+)'$re$, 'g') m
  union
  select s.name, m[1] from tests.sources() s, regexp_matches(s.source, $re$infernet\.secs\([^,()]+, '([a-z0-9_]+)'$re$, 'g') m
  union
  select s.name, m[1] from tests.sources() s, regexp_matches(s.source, $re$\msetting(?:_int|_number|_text|_secs)?\('([a-z0-9_]+)'$re$, 'g') m
$$;
select cmp_ok((select count(distinct key) from tests.settings_read()), '>', 40::bigint, 'the code reads settings in the ways that are known here');
select is_empty('select r.name, r.key from tests.settings_read() r where r.key not in (select s.key from public.settings s)',
  'each setting that the code reads is in the table');
select is_empty($$select s.key from public.settings s where not exists (
    select from tests.sources() f where f.name not like '%check_setting%' and f.name not like '%follow_price_floor%'
      and (f.source like '%''' || s.key || '''%' or (s.key like '%\_max' and f.source like '%''' || left(s.key, -4) || '''%''_max''%')))$$,
  'and none is there that nothing reads');
-- The search finds what it is for.
create function infernet.planted(p_settings jsonb) returns text language sql as $$ select p_settings ->> 'no_such_setting' || infernet.setting_text('no_such_dial') $$;
select set_eq('select r.key from tests.settings_read() r where r.key not in (select s.key from public.settings s)',
  array['no_such_setting', 'no_such_dial'], 'a setting that there is not would be seen');
drop function infernet.planted(jsonb);
select throws_ok($$select infernet.setting('no_such_dial')$$, 'P0001', 'setting no_such_dial is missing', 'and is an error, not null');

select * from finish();
rollback;
