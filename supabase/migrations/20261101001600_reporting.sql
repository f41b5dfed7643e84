-- What anybody may know: the overview of the market, the cards of public providers, and what this
-- control plane is.

create function infernet.overview() returns jsonb
language sql volatile security definer set search_path = '' as $$
  with now as materialized (select infernet.clock() as at)
  select jsonb_build_object(
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
