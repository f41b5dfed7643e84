-- What anybody may know: the overview of the market, the cards of public providers, and what this
-- control plane is. And what an owner's nodes earned.

-- The overview of a large market, kept by the tick: counting 200,000 offers for each visitor would let anybody
-- keep the database busy. A small market is counted when asked, and nothing is kept.
create table infernet.overview_kept (
  only_row boolean primary key default true check (only_row),
  made_at  timestamptz not null default 'epoch',
  value    jsonb
);
alter table infernet.overview_kept enable row level security;
insert into infernet.overview_kept default values;

-- The overview, counted.
create function infernet.overview_now() returns jsonb
language sql volatile security definer set search_path = '' as $$
  with now as materialized (select infernet.clock() as at)
  select jsonb_build_object(
    'as_of', (select now.at from now),
    'nodes', (select jsonb_build_object('total', count(*), 'online', count(*) filter (where l.lease_until > now.at))
              from public.providers p join public.node_liveness l on l.node_id = p.id cross join now
              where p.approval = 'approved'),
    'models', (select coalesce(jsonb_agg(to_jsonb(m) order by m.name), '[]') from (
      select m.name, count(*) as offers, count(*) filter (where l.lease_until > now.at and not l.draining) as online,
             infernet.usd(min(o.price_input)) as lowest_input, infernet.usd(min(o.price_output)) as lowest_output
      from public.models m join public.offers o on o.model_id = m.id
      join public.node_liveness l on l.node_id = o.provider_id cross join now
      where m.visibility = 'public' and o.enabled and o.listed group by m.name) m),
    'jobs', jsonb_build_object(
      'queued', (select count(*) from infernet.queue q where q.ready_at is null),
      'running', (select count(*) from infernet.live_attempts),
      'completed', (select p.jobs_completed + (select count(*) from infernet.outcomes o where o.code is null) from infernet.pulse p)))
$$;

-- The overview, as it is kept where it is.
create function infernet.overview() returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_value jsonb;
begin
  select k.value into v_value from infernet.overview_kept k where k.made_at > infernet.clock() - interval '2 minutes';
  return coalesce(v_value, infernet.overview_now());
end $$;

-- Keeps the overview of a market with so many offers that counting them takes long. The tick calls it first,
-- before it locks anything.
create function infernet.keep_overview(p_now timestamptz, p_set jsonb) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_large boolean := (select greatest(c.reltuples, 0) >= (p_set ->> 'overview_kept_offers')::numeric
                      from pg_catalog.pg_class c where c.oid = 'public.offers'::regclass);
begin
  if v_large then
    update infernet.overview_kept set made_at = p_now, value = infernet.overview_now() where made_at <= p_now - interval '15 seconds';
  else
    update infernet.overview_kept set value = null where value is not null;
  end if;
end $$;

-- A public, approved provider, coarsely. What a provider keeps private is not listed.
create function infernet.provider_cards()
returns table (id uuid, name text, region text, status public.node_status, specs jsonb, created_at timestamptz)
language sql stable security definer set search_path = '' as $$
  select p.id, p.name, p.region, p.status,
         jsonb_strip_nulls(jsonb_build_object('platform', p.specs -> 'platform', 'gpus', p.specs -> 'gpus')), p.created_at
  from public.providers p where p.is_public and p.approval = 'approved'
$$;

create function infernet.info() returns jsonb
language sql volatile security definer set search_path = '' as $$
  select jsonb_build_object(
    'name', infernet.setting_text('name'), 'fee_rate', infernet.setting_text('fee_rate'),
    'limits', jsonb_build_object('prompt_bytes', infernet.setting_int('prompt_bytes'),
                                 'output_tokens', infernet.setting_int('output_tokens_max'),
                                 'result_bytes', infernet.setting_int('output_bytes')),
    'server_time', infernet.clock())
$$;

-- What the caller's nodes earned together: since midnight UTC, in 30 days, and what of all that was earned is
-- not paid out yet. Read from the ledger (ledger_entries_account), so that it stays true when records of jobs
-- go. A capture gives; what comes back from a payout is nothing earned.
create function infernet.my_earnings() returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_user  uuid := infernet.require_user();
  v_now   timestamptz := infernet.clock();
  v_today timestamptz := date_trunc('day', v_now at time zone 'UTC') at time zone 'UTC';
begin
  return (select jsonb_build_object(
      'today', infernet.usd(coalesce(sum(e.amount) filter (where e.created_at >= v_today), 0)),
      'days30', infernet.usd(coalesce(sum(e.amount), 0)),
      'pending', infernet.usd((select coalesce(sum(a.balance), 0) from public.ledger_accounts a
                               where a.party_id = v_user and a.kind in ('earned', 'payouts_in_flight'))))
    from public.ledger_entries e join public.ledger_transfers t on t.id = e.transfer_id
    where e.account_id = infernet.account('earned', v_user) and e.created_at >= v_now - interval '30 days'
      and t.kind = 'capture');
end $$;
