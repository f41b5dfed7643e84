-- Outcomes: what became of attempts, and what the market makes of it: how fast an offer is, what its
-- provider's word is worth, how many jobs were done. The calls only note a fact; the tick folds the
-- facts, so that no call waits for another one's statistics.

-- Facts not yet folded, in the order in which they were noted. code is null for a result.
create table infernet.outcomes (
  id            bigint generated always as identity primary key,
  provider_id   uuid not null,
  owner_id      uuid not null,
  offer_id      uuid not null,
  consumer_id   uuid not null,
  code          text,
  cost          numeric(38,12),
  output_tokens int,
  seconds       double precision,
  noted_at      timestamptz not null
);
alter table infernet.outcomes enable row level security;

-- What each consumer has lately seen of each provider: weights that halve every week, so that recent
-- outcomes count.
create table infernet.experiences (
  provider_id uuid not null references public.providers (id),
  consumer_id uuid not null references public.users (id),
  good        double precision not null default 0,
  bad         double precision not null default 0,
  paid        numeric(38,12) not null default 0,
  updated_at  timestamptz not null,
  primary key (provider_id, consumer_id)
) with (fillfactor = 70);
alter table infernet.experiences enable row level security;
create index experiences_consumer on infernet.experiences (consumer_id);

-- Notes how an attempt ended. What is nobody's fault, or the consumer's, is not noted.
create function infernet.note_outcome(
  p_attempt public.job_attempts, p_consumer uuid, p_code text, p_cost numeric, p_output_tokens int) returns void
language plpgsql security definer set search_path = '' as $$
declare
  v_now timestamptz := infernet.clock();
begin
  if p_code in ('bad_request', 'shutdown', 'cancelled', 'node_left', 'deadline') then
    return;
  end if;
  insert into infernet.outcomes (provider_id, owner_id, offer_id, consumer_id, code, cost, output_tokens, seconds, noted_at)
  values (p_attempt.provider_id, p_attempt.owner_id, p_attempt.offer_id, p_consumer, p_code, p_cost, p_output_tokens,
          extract(epoch from v_now - p_attempt.started_at), v_now);
end $$;

-- A provider's standing, 0 to 100, from what consumers have seen of it. Each consumer counts once, by the
-- share of good outcomes, however many jobs it sent; one that has hardly paid counts hardly (a cent counts
-- in full), and the provider's own owner not at all. Two consumers' worth of neither good nor bad is
-- there from the start.
create function infernet.standing(p_provider uuid) returns int
language sql stable security definer set search_path = '' as $$
  select round(100 * (1 + coalesce(sum(e.share * e.weight), 0)) / (2 + coalesce(sum(e.weight), 0)))::int
  from (select x.good / (x.good + x.bad) as share, least(1, x.paid / 0.01)::double precision as weight
        from infernet.experiences x join public.providers p on p.id = x.provider_id
        where x.provider_id = p_provider and x.good + x.bad > 0 and x.consumer_id <> p.owner_id) e
$$;

-- Folds noted facts into experiences, standings, faults and counts, and returns them. Waits for nobody: a
-- standing whose provider is just being changed is worked out with the next fact.
create function infernet.fold_outcomes(p_now timestamptz, p_limit int) returns infernet.outcomes[]
language plpgsql security definer set search_path = '' as $$
declare
  v_facts    infernet.outcomes[];
  v_provider uuid;
  v_standing int;
begin
  with fact as (
    delete from infernet.outcomes o where o.id in (select f.id from infernet.outcomes f order by f.id limit p_limit) returning o)
  select array_agg(f.o) into v_facts from fact f;
  if v_facts is null then
    return null;
  end if;

  insert into infernet.experiences as e (provider_id, consumer_id, good, bad, paid, updated_at)
  select f.provider_id, f.consumer_id, count(*) filter (where f.code is null), count(*) filter (where f.code is not null),
         coalesce(sum(f.cost), 0), p_now
  from unnest(v_facts) f group by f.provider_id, f.consumer_id
  on conflict (provider_id, consumer_id) do update set
    good = excluded.good + e.good * 0.5 ^ (extract(epoch from p_now - e.updated_at) / 604800)::double precision,
    bad = excluded.bad + e.bad * 0.5 ^ (extract(epoch from p_now - e.updated_at) / 604800)::double precision,
    paid = e.paid + excluded.paid, updated_at = p_now;

  for v_provider in select p.id from public.providers p where p.id in (select f.provider_id from unnest(v_facts) f) for update skip locked loop
    v_standing := infernet.standing(v_provider);
    update public.providers set reputation = v_standing where id = v_provider and reputation <> v_standing;
    update public.offers set reputation = v_standing where provider_id = v_provider and reputation <> v_standing;
  end loop;

  -- What runs on an engine dies with it: what fails within a second is one fault. A success counts where there is
  -- a fault or a pause to be forgiven.
  insert into infernet.node_faults (node_id, code, at)
  select f.provider_id, f.code, f.noted_at
  from (select o.*, row_number() over (partition by o.provider_id, o.code is null, date_trunc('second', o.noted_at) order by o.id) as n
        from unnest(v_facts) o where o.code is null or o.code in ('engine_failed', 'engine_unavailable', 'not_started')) f
  where case when f.code is null
    then exists (select from infernet.node_faults n where n.node_id = f.provider_id)
         or exists (select from public.node_stops s where s.node_id = f.provider_id and s.pauses > 0)
         or exists (select from unnest(v_facts) o where o.provider_id = f.provider_id and o.code is not null)
    else f.n = 1 and not exists (select from infernet.node_faults n where n.node_id = f.provider_id and n.code is not null
                                   and date_trunc('second', n.at) = date_trunc('second', f.noted_at)) end
  order by f.id;

  update infernet.pulse set jobs_completed = jobs_completed + (select count(*) from unnest(v_facts) f where f.code is null);
  return v_facts;
end $$;

-- Folds facts into the speeds of offers: bounded output over the server's own time; answers of fewer than 16
-- tokens say nothing about it. The tick does this last, because whoever holds a row of offer_load holds up
-- those who want a slot.
create function infernet.note_speeds(p_now timestamptz, p_facts infernet.outcomes[]) returns void
language plpgsql security definer set search_path = '' as $$
begin
  update infernet.offer_load l set last_done = p_now,
    speed = coalesce(l.speed + (s.speed - l.speed) * (1 - 0.8 ^ s.n), s.speed, l.speed)
  from (select f.offer_id, count(*)::double precision as n,
               sum(f.output_tokens) filter (where f.output_tokens >= 16)
               / nullif(sum(f.seconds) filter (where f.output_tokens >= 16), 0) as speed
        from unnest(p_facts) f where f.code is null group by f.offer_id) s
  where l.offer_id = s.offer_id
    and l.offer_id in (select k.offer_id from infernet.offer_load k
                       where k.offer_id in (select f.offer_id from unnest(p_facts) f) for update skip locked);
end $$;
