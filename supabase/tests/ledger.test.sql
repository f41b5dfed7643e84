-- The ledger: what it allows, what it never does, and that its proof finds each kind of fault.
begin;
\ir actors.psql
select no_plan();

select tests.user('alice'), tests.user('bob'), tests.operator('olga');

-- ------------------------------------------------------------ transfers
create function tests.post(p_id text, p_amount numeric) returns text
language sql as $$
  select infernet.post_transfer(infernet.derived_id(tests.user('alice'), p_id), 'grant',
    array[infernet.account('goodwill', null), infernet.account('available', tests.user('alice'))], array[-p_amount, p_amount])
$$;
select is(tests.post('a', 3), 'created', 'a transfer is posted');
select is(tests.post('a', 3), 'exists', 'posted again it exists');
select is(tests.balance('alice'), 3::numeric, 'and counts once');
select throws_ok($$select tests.post('a', 4)$$, 'PT409', null, 'the same id with another amount is refused');
select is((select count(*) from public.ledger_entries), 2::bigint, 'a transfer has an entry for each account');
select is((select array_agg(balance_after order by balance_after) from public.ledger_entries), '{-3,3}'::numeric[], 'which says the balance after it');
select throws_ok($$select infernet.post_transfer(gen_random_uuid(), 'adjustment', array[infernet.account('available', tests.user('alice')),
  infernet.account('available', tests.user('bob'))], array[-4, 4])$$, '23514', null, 'no account of a user goes below zero');
select throws_ok($$select infernet.post_transfer(gen_random_uuid(), 'adjustment', array[infernet.account('available', tests.user('alice'))], array[1]);
  set constraints all immediate$$, '23000', null, 'an unbalanced transfer is refused');
set constraints all deferred;
select throws_ok($$insert into public.ledger_entries select transfer_id, infernet.account('fee', null), 1, 1, now() from public.ledger_entries limit 1;
  set constraints all immediate$$, '23000', null, 'so is one entry more on an old transfer');
set constraints all deferred;

-- What is deferred to the commit runs as whoever commits; on PostgreSQL 15 that is who sees no entries.
create function tests.post_unbalanced(p_amount numeric) returns void
language sql security definer as $$
  insert into public.ledger_transfers (id, kind, digest, created_at) values (infernet.derived_id(tests.user('bob'), p_amount::text), 'adjustment', '', now());
  insert into public.ledger_entries select infernet.derived_id(tests.user('bob'), p_amount::text), a, x, x, now()
  from (values (infernet.account('goodwill', null), -1), (infernet.account('available', tests.user('bob')), p_amount)) v (a, x)
$$;
create function tests.commit_as(p_name text, p_amount numeric) returns void
language plpgsql as $$
begin
  perform tests.be(p_name), tests.post_unbalanced(p_amount);
  set constraints all immediate;
  perform tests.be_nobody();
  raise exception sqlstate 'ZZ000';
end $$;
grant execute on all functions in schema tests to authenticated;
select throws_ok($$select tests.commit_as('alice', 2)$$, '23000', null, 'an unbalanced posting by authenticated is refused at its commit');
select throws_ok($$select tests.commit_as('alice', 1)$$, 'ZZ000', null, 'a balanced one is not');
set constraints all deferred;

-- ------------------------------------------------------------ append-only, for the owner of the tables too
set constraints all immediate;
set constraints all deferred;
select is(current_user::text, 'postgres', 'these are tried as the owner');
select throws_ok('update public.ledger_entries set amount = 9', '23001', null, 'entries are not updated');
select throws_ok('delete from public.ledger_entries', '23001', null, 'nor deleted');
select throws_ok('truncate public.ledger_entries', '23001', null, 'nor truncated');
select throws_ok('update public.ledger_transfers set memo = ''x''', '23001', null, 'transfers are not updated');
select throws_ok('delete from public.ledger_transfers', '23001', null, 'nor deleted');
select throws_ok('truncate public.ledger_transfers cascade', '23001', null, 'nor truncated');

-- ------------------------------------------------------------ credit
select is(tests.as('olga', format('public.grant_credit(%L, %L, 2.5, ''hello'')', '00000000-0000-7000-8000-0000000000c1', tests.key('bob'))) ->> 'result', 'created',
  'an operator grants credit');
select is(tests.as('olga', format('public.grant_credit(%L, %L, 2.5, ''hello'')', '00000000-0000-7000-8000-0000000000c1', tests.key('bob'))) ->> 'result', 'exists',
  'once an id');
select is(tests.balance('bob'), 2.5, 'and it is there');
select throws_ok(format($$select tests.as('olga', 'public.grant_credit(gen_random_uuid(), ''%s'', -1)')$$, tests.key('bob')), 'PT422', null, 'credit is positive');
select throws_ok(format($$select tests.as('olga', 'public.grant_credit(gen_random_uuid(), ''%s'', ''NaN'')')$$, tests.key('bob')), 'PT422', null, 'and a number');
update public.settings set value = '1.5' where key = 'welcome_credit';
select tests.user('carol');
select is(tests.balance('carol'), 1.5, 'new users get the welcome credit');

-- ------------------------------------------------------------ fees: the remainder goes to the operator, nothing is lost
select tests.node('n1', 'dave'), tests.online('n1', 1, 0.000001, 0.333333);
create temp table split (fee_rate numeric);
insert into split values (0), (0.05), (0.333333), (1);
do $$
declare
  v_rate numeric;
  v_attempt uuid;
begin
  perform tests.set_clock('2026-11-01 12:00:00+00');
  perform tests.as('n1', 'public.heartbeat()');
  for v_rate in select fee_rate from split loop
    update public.settings set value = to_jsonb(v_rate) where key = 'fee_rate';
    v_attempt := (tests.submit('alice', infernet.derived_id(tests.user('alice'), v_rate::text), 50, 1) #>> '{attempt,id}')::uuid;
    perform tests.start('n1', v_attempt, v_attempt);
    perform tests.pass_time('1 second'), tests.as('n1', format('public.heartbeat(array[%L::uuid])', v_attempt));
    perform tests.complete('n1', v_attempt, v_attempt, repeat('x', 50), 'stop', 7, 13);
  end loop;
end $$;
select is((select count(*) from public.job_attempts where state = 'completed'), 4::bigint, 'jobs at four fee rates are settled');
select is(a.earned, trunc(a.cost * (1 - a.fee_rate), 12), format('at a fee of %s the owner earns the cost less it, cut at 12 decimals', a.fee_rate)) from public.job_attempts a;
select is((select sum(amount) from public.ledger_entries e join public.ledger_accounts x on x.id = e.account_id where x.kind = 'fee'),
  (select sum(cost - earned) from public.job_attempts), 'the fee is the rest, to the last digit');
select is(tests.balance('alice') + (select sum(cost) from public.job_attempts), 3::numeric, 'the consumer paid the cost and nothing else');
select ok((infernet.prove_ledger() ->> 'ok')::boolean, 'the books are whole: ' || (infernet.prove_ledger() ->> 'faults'));

-- ------------------------------------------------------------ the proof finds faults
set constraints all immediate;
set constraints all deferred;
create function tests.faults(p_damage text) returns text
language plpgsql as $$
declare
  v_proof jsonb;
begin
  begin
    execute p_damage;
    v_proof := infernet.prove_ledger();
    raise exception sqlstate 'ZZ000';
  exception when sqlstate 'ZZ000' then
    return case when (v_proof ->> 'ok')::boolean then 'ok' else v_proof ->> 'faults' end;
  end;
end $$;
select matches(tests.faults($$update public.ledger_accounts set balance = balance + 1 where kind = 'available'$$), 'its entries', 'a balance moved by hand');
select matches(tests.faults($$alter table public.ledger_entries disable trigger ledger_entries_fixed; update public.ledger_entries set amount = amount + 1 where amount > 0$$),
  'sums to', 'an entry changed by hand');
select matches(tests.faults($$update public.jobs set state = 'running' where id = (select id from public.jobs limit 1)$$), 'its jobs say 1', 'a job whose hold is gone');
select matches(tests.faults($$update public.jobs set cost = cost + 1$$), 'and cost 1', 'a cost that was not paid');
select matches(tests.faults($$insert into public.ledger_holds (id, consumer_id, amount, open_jobs, created_at)
  select gen_random_uuid(), consumer_id, 1, 1, now() from public.jobs limit 1$$), 'held, and open holds', 'a hold without money');
select is(tests.faults('select 1'), 'ok', 'and nothing where nothing is wrong');
select * from finish();
rollback;
