-- What market_model.rs compares with: the whole market as one object. All that the model knows of the
-- tables is here.

create function tests.ms(p_at timestamptz) returns bigint
language sql immutable as $$ select (extract(epoch from p_at) * 1000)::bigint $$;

-- p_whole: also what had ended before this moment of the clock, which must never change again.
create function tests.seen(p_whole boolean) returns jsonb
language plpgsql set plan_cache_mode = force_generic_plan set jit = off as $$
declare
  v_now timestamptz := infernet.clock();
begin
  return (select jsonb_build_object(
    'whole', p_whole, 'last_tick', tests.ms(p.last_tick), 'grace_until', tests.ms(p.grace_until),
    'jobs', (select coalesce(jsonb_object_agg(j.id, jsonb_build_object(
        'consumer', j.consumer_id, 'model', j.model_name, 'state', j.state, 'attempts', j.attempts,
        'max_attempts', j.max_attempts, 'cap', j.price_cap::text, 'input_bound', j.input_bound,
        'max_tokens', j.max_tokens, 'deadline', tests.ms(j.deadline_at), 'failed_on', j.failed_on,
        'retry_after', tests.ms(j.retry_after), 'cancel_at', tests.ms(j.cancel_at), 'ended', tests.ms(j.ended_at),
        'cost', j.cost::text, 'code', j.error_code, 'priority', j.priority, 'batch', j.batch_id, 'item', j.batch_item,
        'start', tests.ms(j.start_at), 'exclude', j.exclude, 'labels', j.labels)), '{}')
      from public.jobs j where p_whole or j.ended_at is null or j.ended_at >= v_now),
    'waiting', (select coalesce(jsonb_object_agg(q.job_id, q.ready_at is null), '{}') from infernet.queue q),
    'live', (select coalesce(jsonb_object_agg(l.job_id, l.attempt_id), '{}') from infernet.live_attempts l),
    'failed', (select coalesce(jsonb_agg(f.job_id), '[]') from infernet.failed_jobs f),
    'attempts', (select coalesce(jsonb_object_agg(a.id, jsonb_build_object(
        'job', a.job_id, 'number', a.number, 'offer', a.offer_id, 'node', a.provider_id, 'state', a.state,
        'lease', a.lease, 'price_input', a.price_input::text, 'price_output', a.price_output::text,
        'offered', tests.ms(a.offered_at), 'started', tests.ms(a.started_at), 'ended', tests.ms(a.ended_at),
        'cost', a.cost::text, 'earned', a.earned::text, 'code', a.error_code)), '{}')
      from public.job_attempts a where p_whole or a.ended_at is null or a.ended_at >= v_now),
    'offers', (select coalesce(jsonb_object_agg(o.id, jsonb_build_object(
        'node', o.provider_id, 'model', m.name, 'labels', o.labels, 'slots', l.slots, 'busy', infernet.busy(o.id), 'enabled', o.enabled,
        'approved', o.approved, 'price_input', o.price_input::text, 'price_output', o.price_output::text)), '{}')
      from public.offers o join infernet.offer_load l on l.offer_id = o.id join public.models m on m.id = o.model_id),
    'nodes', (select jsonb_object_agg(n.node_id, jsonb_build_object(
        'owner', n.owner_id, 'lease_until', tests.ms(n.lease_until), 'approval', p.approval,
        'wants_drain', n.wants_drain, 'stopped', n.stopped, 'draining', n.draining,
        'drained_by', s.drained_by, 'paused_until', tests.ms(s.paused_until)))
      from public.node_liveness n join public.providers p on p.id = n.node_id
      left join public.node_stops s on s.node_id = n.node_id),
    'balances', (select jsonb_object_agg(party_id, money) from (
      select a.party_id, jsonb_object_agg(a.kind, a.balance::text) as money
      from public.ledger_accounts a where a.kind in ('available', 'held', 'earned') group by 1) x),
    'fees', (select sum(a.balance)::text from public.ledger_accounts a where a.kind = 'fee'))
  from infernet.pulse p);
end $$;
