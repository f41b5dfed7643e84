-- Explanation: the life of a job as a person wants it told, and the proof that its history is whole.
--
-- A job's history is a chain: each event has a digest over itself and the digest before it, and the job's row
-- says how many there are and what the last digest is. So a changed event, a missing one, one too many and
-- two that changed places are all found. Whoever may write all of these tables could write another
-- history with other digests: it is a proof against mistakes and against who can write a part.

-- ---------------------------------------------------------------- the proof

-- Of these jobs, those whose history is not whole, with the number of the first event that is wrong, missing or
-- one too many.
create function infernet.broken_histories(p_jobs uuid[]) returns table (job_id uuid, broken_at int)
language sql stable security definer set search_path = '' as $$
  with event as (
    select e.*, row_number() over w as place, lag(e.digest) over w as before
    from public.job_events e where e.job_id = any (p_jobs) window w as (partition by e.job_id order by e.seq)
  ), chain as (
    select e.job_id, count(*)::int as events, (array_agg(e.digest order by e.seq desc))[1] as head,
           min(e.place) filter (where e.seq <> e.place or e.digest <> infernet.event_digest(
             e.before, e.job_id, e.seq, e.attempt_id, e.event, e.data, e.created_at))::int as wrong
    from event e group by e.job_id
  )
  select coalesce(j.id, c.job_id), case
    when c.wrong is not null then c.wrong
    when coalesce(c.events, 0) < coalesce(j.events, 0) then coalesce(c.events, 0) + 1
    -- More than the job knows of, or another last one.
    when c.events > coalesce(j.events, 0) then coalesce(j.events, 0) + 1
    else c.events end
  from (select * from public.jobs j where j.id = any (p_jobs)) j full join chain c on c.job_id = j.id
  where c.wrong is not null or coalesce(c.events, 0) <> coalesce(j.events, 0) or c.head is distinct from j.events_digest
$$;

-- One job's history: {"ok","events","broken_at"}.
create function infernet.check_events(p_job uuid) returns jsonb
language sql stable security definer set search_path = '' as $$
  select jsonb_build_object('ok', b.broken_at is null, 'broken_at', b.broken_at,
    'events', (select count(*) from public.job_events e where e.job_id = p_job))
  from (values (p_job)) j (id) left join infernet.broken_histories(array[p_job]) b on b.job_id = j.id
$$;

-- The histories of at most p_limit jobs whose ids follow p_after: {"checked","reached": the last id looked at,
-- null at the end,"broken":[{"job","at"}]}. Events without a job are found too.
create function infernet.check_histories(p_after uuid, p_limit int) returns jsonb
language plpgsql stable security definer set search_path = ''
set enable_seqscan = off as $$
declare
  v_after uuid := coalesce(p_after, '00000000-0000-0000-0000-000000000000');
  v_jobs  uuid[];
begin
  if p_limit is null or p_limit not between 1 and 10000 then
    perform infernet.refuse(422, 'bad_input', 'At most 10000 histories are checked at once.');
  end if;
  v_jobs := array(
    select i.id from (
      (select j.id from public.jobs j where j.id > v_after order by j.id limit p_limit)
      union
      (select e.job_id from public.job_events e where e.job_id > v_after and e.seq = 1 order by e.job_id limit p_limit)) i
    order by i.id limit p_limit);
  return (select jsonb_build_object('checked', cardinality(v_jobs),
            'reached', case when cardinality(v_jobs) = p_limit then v_jobs[p_limit] end,
            'broken', coalesce(jsonb_agg(jsonb_build_object('job', b.job_id, 'at', b.broken_at) order by b.job_id), '[]'))
          from infernet.broken_histories(v_jobs) b);
end $$;

create function infernet.operator_histories(p_after uuid, p_limit int) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
begin
  perform infernet.require_operator();
  return infernet.check_histories(p_after, p_limit);
end $$;

-- ---------------------------------------------------------------- sentences

-- Money as people read it: without the zeros at its end.
create function infernet.usd_text(p_amount numeric) returns text
language sql immutable parallel safe
return trim_scale(p_amount)::text || ' USD';

-- How long something took, as people read it.
create function infernet.took_text(p_took interval) returns text
language sql immutable parallel safe
return case when p_took < interval '2 minutes' then round(extract(epoch from p_took), 1) || ' s'
            when p_took < interval '2 hours' then round(extract(epoch from p_took) / 60) || ' min'
            else round(extract(epoch from p_took) / 3600) || ' h' end;

-- So many offers, by the reason why they did not take a job: "2 were busy, 1 was offline".
create function infernet.reasons_text(p_reasons jsonb) returns text
language sql immutable set search_path = '' as $$
  select string_agg(r.value || ' ' || case
      when r.key in ('offline', 'above the cap', 'excluded', 'in another region', 'busy', 'without the labels')
        then case when r.value = '1' then 'was ' else 'were ' end || r.key
      when r.key = 'takes no new work' then 'took no new work'
      when r.key = 'failed it before' then 'had failed it before'
      else 'had ' || r.key end, ', ' order by r.value::int desc, r.key)
  from jsonb_each_text(p_reasons) r
$$;

-- How a job came to a node, from the record of the choice.
create function infernet.given_text(p_attempt public.job_attempts) returns text
language plpgsql stable set search_path = '' as $$
declare
  v_free    int;
  v_rank    int;
  v_reasons jsonb;
begin
  if p_attempt.choice ->> 'by' = 'line' then
    return format('Given to node %s, which had a slot free: it was the next in its line that this node could take.', p_attempt.provider_name);
  end if;
  -- The record has the best first, and those that could not take it last.
  select count(*) filter (where jsonb_typeof(o -> 1) = 'number'),
         min(n) filter (where o ->> 0 = p_attempt.provider_id::text)
  into v_free, v_rank from jsonb_array_elements(p_attempt.choice -> 'offers') with ordinality as e (o, n);
  v_reasons := infernet.unmet(p_attempt.choice, null, 1) -> 'not';
  return format('Given to node %s: %s%s.', p_attempt.provider_name, case
      when v_free = 1 then format('of %s the only one that could take it', infernet.offers_text(p_attempt.choice -> 'seen'))
      when v_rank = 1 then format('the best of %s offers that could take it', v_free)
      else format('number %s of %s offers that could take it, because the better ones were just being taken', v_rank, v_free) end,
    coalesce('; ' || infernet.reasons_text(v_reasons), ''));
end $$;

create function infernet.offers_text(p_count jsonb) returns text
language sql immutable parallel safe
return case when p_count = '1' then '1 offer' else (p_count #>> '{}') || ' offers' end;

-- What a job met when it was submitted and no node got it.
create function infernet.unmet_text(p_unmet jsonb, p_job public.jobs) returns text
language sql stable set search_path = '' as $$
  select case p_unmet ->> 'waits'
    when 'delayed' then ' It was to wait' || coalesce(' until ' || infernet.time_text(p_job.start_at), '') || '.'
    when 'running_limit' then ' As many jobs of its consumer ran as may run at a time, so it joined its line.'
    when 'none_free' then case when p_unmet -> 'seen' = '0' then ' Nobody offered that, so it joined its line.'
      else format(' Of %s none took it at once%s; it joined its line.', infernet.offers_text(p_unmet -> 'seen'),
                  coalesce(': ' || infernet.reasons_text(p_unmet -> 'not'), '')) end
    else '' end
$$;

-- How an attempt ended without a result.
create function infernet.end_text(p_attempt public.job_attempts) returns text
language sql stable set search_path = '' as $$
  select format('Attempt %s on node %s %s (%s)%s', p_attempt.number, p_attempt.provider_name,
    case p_attempt.state when 'lost' then 'was lost' when 'cancelled' then 'was cancelled' else 'failed' end, p_attempt.error_code,
    coalesce(': ' || rtrim(left(p_attempt.error, 200), ' .'), '') || '.')
$$;

-- An event as a sentence. p_before: the event before it; p_attempt: the attempt that it is about, if any.
create function infernet.event_text(
  p_job public.jobs, p_event public.job_events, p_before text, p_attempt public.job_attempts) returns text
language plpgsql stable set search_path = '' as $$
declare
  v_batch text := format(', as item %s of batch %s', p_job.batch_item, p_job.batch_id);
begin
  return case p_event.event
    when 'submitted' then
      format('Submitted: %s, for at most %s%s.', p_job.model_name, infernet.usd_text((p_event.data ->> 'cap')::numeric),
             case when p_job.batch_id is not null then v_batch else '' end) || infernet.unmet_text(p_event.data, p_job)
    when 'unpaid' then 'It waits for its payment.'
    when 'assigned' then infernet.given_text(p_attempt)
    when 'running' then format('Node %s started it, %s after it was offered.', p_attempt.provider_name,
                               infernet.took_text(p_attempt.started_at - p_attempt.offered_at))
    when 'queued' then case
      when p_before in ('submitted', 'unpaid') then 'It was paid, and joined its line.'
      when p_before in ('failed', 'expired') then 'Its consumer let it try again; it joined its line anew.'
      else infernet.end_text(p_attempt) || ' It went back to the head of its line.' end
    when 'cancelling' then format('Its consumer cancelled it; node %s was told to stop.', p_attempt.provider_name)
    when 'completed' then
      format('Node %s completed it in %s: %s, for %s.', p_attempt.provider_name,
             infernet.took_text(p_attempt.ended_at - p_attempt.started_at), infernet.usage_text(p_job),
             infernet.usd_text((p_event.data ->> 'cost')::numeric))
    when 'cancelled' then case
      when p_before = 'assigned' then 'Its consumer cancelled it before it started; nothing is paid.'
      when p_before <> 'cancelling' then 'Its consumer cancelled it before a node had it; nothing is paid.'
      when p_event.data ? 'cost' then format('Node %s stopped: %s were delivered until then, for %s.', p_attempt.provider_name,
                                             infernet.usage_text(p_job), infernet.usd_text((p_event.data ->> 'cost')::numeric))
      else infernet.end_text(p_attempt) || ' Nothing is paid.' end
    when 'failed' then infernet.end_text(p_attempt) || case p_event.data ->> 'code'
      when 'bad_request' then ' The fault is the job''s own, so it was not tried elsewhere; nothing is paid.'
      else format(' It failed for good after %s; nothing is paid.',
                  case when p_job.max_attempts = 1 then '1 attempt' else 'its attempts' end) end
    when 'expired' then case
      when p_before in ('assigned', 'running') then infernet.end_text(p_attempt) || ' It expired; nothing is paid.'
      else 'Its deadline passed before a node took it; nothing is paid.' end
    else format('It became %s.', p_event.event) end;
end $$;

create function infernet.usage_text(p_job public.jobs) returns text
language sql stable set search_path = '' as $$
  select case when p_job.seconds is not null then p_job.seconds || ' seconds'
              else format('%s tokens in, %s out', p_job.input_tokens, p_job.output_tokens) end
$$;

-- Who or what caused an event: consumer, node, the market's choice (score, line), or the code of a failure.
create function infernet.event_cause(p_event public.job_events, p_before text, p_attempt public.job_attempts) returns text
language sql stable set search_path = '' as $$
  select case
    when p_event.event in ('submitted', 'cancelling', 'cancelled') then 'consumer'
    when p_event.event = 'queued' and p_before in ('failed', 'expired') then 'consumer'
    when p_event.event = 'queued' and p_before in ('submitted', 'unpaid') then 'payment'
    when p_event.event = 'assigned' then p_attempt.choice ->> 'by'
    when p_event.event in ('running', 'completed') then 'node'
    else p_event.data ->> 'code' end
$$;

-- ---------------------------------------------------------------- the whole

-- The offers of a choice with the names of their nodes. Nodes that their owners keep private have names for
-- operators alone (p_all).
create function infernet.offers_told(p_offers jsonb, p_all boolean) returns jsonb
language sql stable security definer set search_path = '' as $$
  select coalesce(jsonb_agg(jsonb_build_object(
      'node', case when p_all or p.is_public then jsonb_build_object('id', p.id, 'name', p.name) end,
      'score', case when jsonb_typeof(o -> 1) = 'number' then o -> 1 end,
      'reason', case when jsonb_typeof(o -> 1) = 'string' then o ->> 1 end) order by n), '[]')
  from jsonb_array_elements(coalesce(nullif(p_offers, 'null'), '[]')) with ordinality as e (o, n)
  left join public.providers p on p.id = (o ->> 0)::uuid
$$;

-- What happened to a job, in order.
create function infernet.story(p_job public.jobs) returns jsonb
language sql stable security definer set search_path = '' as $$
  with line as (
    select e.seq, e.created_at as at, e.event, infernet.event_text(p_job, e, e.before, a) as what,
           infernet.event_cause(e, e.before, a) as cause, a
    from (select e, lag(e.event) over (order by e.seq) as before from public.job_events e where e.job_id = p_job.id) h
    cross join lateral (select (h.e).*, h.before) e
    left join public.job_attempts a on a.id = e.attempt_id
  ), late as (
    select null::int as seq, r.received_at as at, 'late_result' as event,
           format('Node %s sent a result that did not count, because its %s; it is kept as evidence, and nothing is paid for it.',
                  a.provider_name, r.reason) as what, 'node' as cause, a
    from public.job_attempts a join infernet.late_results r on r.attempt_id = a.id where a.job_id = p_job.id
  )
  select coalesce(jsonb_agg(jsonb_build_object('seq', l.seq, 'at', l.at, 'event', l.event, 'what', l.what, 'cause', l.cause,
    'attempt', (l.a).id, 'node', case when (l.a).id is not null then
      jsonb_build_object('id', (l.a).provider_id, 'name', (l.a).provider_name) end) order by l.at, l.seq), '[]')
  from (table line union all table late) l
$$;

-- Each attempt: when it was offered, started and ended, until when its lease is good now, its prices, and what was
-- seen of the market when it was given.
create function infernet.attempts_told(p_job uuid, p_all boolean) returns jsonb
language sql volatile security definer set search_path = '' as $$
  select coalesce(jsonb_agg(jsonb_build_object(
      'id', a.id, 'number', a.number, 'state', a.state, 'node', jsonb_build_object('id', a.provider_id, 'name', a.provider_name),
      'offered_at', a.offered_at, 'started_at', a.started_at, 'ended_at', a.ended_at,
      'lease_until', (select n.lease_until from infernet.live_attempts l join public.node_liveness n on n.node_id = l.provider_id
                      where l.attempt_id = a.id and l.job_id = a.job_id),
      'price_input', infernet.usd(a.price_input), 'price_output', infernet.usd(a.price_output),
      'price_second', infernet.usd(a.price_second), 'cost', infernet.usd(a.cost), 'earned', infernet.usd(a.earned),
      'error', case when a.error_code is not null then jsonb_build_object('code', a.error_code, 'message', a.error) end,
      'choice', jsonb_build_object('by', a.choice -> 'by', 'seen', a.choice -> 'seen',
                                   'offers', infernet.offers_told(a.choice -> 'offers', p_all))) order by a.number), '[]')
  from public.job_attempts a where a.job_id = p_job
$$;

-- Each line of the ledger that this job caused; of a batch, its hold as a whole.
create function infernet.ledger_told(p_job public.jobs) returns jsonb
language sql stable security definer set search_path = '' as $$
  select coalesce(jsonb_agg(jsonb_build_object('transfer', t.id, 'kind', t.kind, 'account', a.kind, 'amount', infernet.usd(e.amount),
                              'at', t.created_at, 'of_batch', t.job_id is null)
                            order by t.created_at, case t.kind when 'hold' then 0 else 1 end, t.id, e.amount), '[]')
  from (select t.* from public.ledger_transfers t where t.job_id = p_job.id
        union
        select t.* from public.ledger_transfers t where t.id = infernet.derived_id(p_job.hold_id, 'hold')) t
  join public.ledger_entries e on e.transfer_id = t.id
  join public.ledger_accounts a on a.id = e.account_id
$$;

-- Tells a job's life to its consumer, and to operators; to anybody else there is no such job, also to the nodes
-- that ran it and their owners, who read their own attempts in the table. No prompt and no answer is in it.
create function infernet.explain_job(p_job uuid) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_user uuid := infernet.require_user();
  v_all  boolean := infernet.is_operator();
  v_job  public.jobs;
  v_now  jsonb;
begin
  select * into v_job from public.jobs j where j.id = p_job and (j.consumer_id = v_user or v_all);
  if not found then
    perform infernet.refuse(404, 'unknown_job', format('There is no job %s of yours.', p_job), 'List them: infernet job ls');
  end if;
  if v_job.state = 'queued' then
    v_now := (infernet.candidates(v_job, infernet.settings_now())).record;
    v_now := infernet.waiting(v_job) || jsonb_build_object('seen', v_now -> 'seen', 'offers', infernet.offers_told(v_now -> 'offers', v_all));
  end if;
  return jsonb_build_object('job', v_job.id, 'state', v_job.state, 'story', infernet.story(v_job),
    'attempts', infernet.attempts_told(p_job, v_all), 'ledger', infernet.ledger_told(v_job), 'waiting', v_now,
    'chain', infernet.check_events(p_job));
end $$;
