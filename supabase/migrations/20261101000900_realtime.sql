-- Realtime: who may hear and speak where, and the few messages that SQL sends. A message is a hint;
-- nothing depends on its arrival.
--
--   node:NODE       the node hears of attempts and cancellations
--   job:UID:JOB     the consumer UID and the node that runs JOB hear and speak
--   owner:UID       the owner hears of nodes and earnings
--   operator:fleet  operators hear of nodes and jobs

create function infernet.is_uuid(p_text text) returns boolean
language sql immutable parallel safe set search_path = '' as $$
  select coalesce(p_text ~ '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$', false)
$$;

-- Whether the caller is an active user of ours.
create function infernet.is_active_user() returns boolean
language sql stable security definer set search_path = '' as $$
  select exists (select from public.users u where u.id = (select auth.uid()) and u.status = 'active')
$$;

-- Whether the caller is a node with a live attempt of this job.
create function infernet.runs_job(p_job uuid) returns boolean
language sql stable security definer set search_path = '' as $$
  select exists (select from infernet.live_attempts a join public.providers p on p.id = a.provider_id
                 where a.job_id = p_job
                   and a.provider_id = (select auth.uid()) and p.approval = 'approved')
$$;

create function infernet.may_receive(p_topic text) returns boolean
language plpgsql stable security definer set search_path = '' as $$
declare
  v_part text[] := string_to_array(p_topic, ':');
  v_uid  text := auth.uid()::text;
begin
  case v_part[1]
    when 'node' then
      return cardinality(v_part) = 2 and v_part[2] = v_uid
        and exists (select from infernet.keys k where k.subject = auth.uid() and k.kind <> 'user');
    when 'job' then
      return cardinality(v_part) = 3 and infernet.is_uuid(v_part[3])
        and ((v_part[2] = v_uid and infernet.is_active_user())
             or (infernet.runs_job(v_part[3]::uuid)
                 and exists (select from public.jobs j where j.id = v_part[3]::uuid and j.consumer_id::text = v_part[2])));
    when 'owner' then
      return cardinality(v_part) = 2 and v_part[2] = v_uid and infernet.is_active_user();
    when 'operator' then
      return p_topic = 'operator:fleet' and infernet.is_operator();
    else
      return false;
  end case;
end $$;

-- Only jobs' topics are spoken on by clients: the stream of the node, the consumer's `resend`.
create function infernet.may_send(p_topic text) returns boolean
language sql stable security definer set search_path = '' as $$
  select p_topic like 'job:%' and infernet.may_receive(p_topic)
$$;

-- Puts our policies on realtime.messages. The Realtime server makes that table itself, maybe after
-- these migrations, so the tick and register_node() call this again; it does nothing when all is there.
create function infernet.install_realtime() returns boolean
language plpgsql security definer set search_path = '' as $$
begin
  if to_regclass('realtime.messages') is null or to_regprocedure('realtime.topic()') is null then
    return false;
  end if;
  if not exists (select from pg_catalog.pg_policies p where p.schemaname = 'realtime' and p.tablename = 'messages'
                 and p.policyname = 'infernet_receive') then
    create policy infernet_receive on realtime.messages for select to authenticated
      using (extension = 'broadcast' and infernet.may_receive((select realtime.topic())));
  end if;
  if not exists (select from pg_catalog.pg_policies p where p.schemaname = 'realtime' and p.tablename = 'messages'
                 and p.policyname = 'infernet_send') then
    create policy infernet_send on realtime.messages for insert to authenticated
      with check (extension = 'broadcast' and infernet.may_send((select realtime.topic())));
  end if;
  return true;
end $$;

do $$ begin perform infernet.install_realtime(); end $$;

-- Sends a private message after commit, where there is a Realtime.
create function infernet.send(p_topic text, p_event text, p_payload jsonb) returns void
language plpgsql security definer set search_path = '' as $$
begin
  if to_regprocedure('realtime.send(jsonb,text,text,boolean)') is not null then
    perform realtime.send(p_payload, p_event, p_topic, true);
  end if;
end $$;

-- Wakes the nodes that were given attempts, each once, unless it is the node itself that is calling: then
-- the answer of the call carries them. One attempt is named; of several the node asks (claim_attempts).
create function infernet.announce_attempts() returns trigger
language plpgsql security definer set search_path = '' as $$
declare
  v_node record;
begin
  for v_node in
    select n.provider_id as id, count(*) as n, min(n.id::text) as attempt, min(n.job_id::text) as job
    from new_rows n where n.provider_id is distinct from auth.uid() group by n.provider_id
  loop
    if v_node.n = 1 then
      perform infernet.send('node:' || v_node.id, 'attempt', jsonb_build_object('attempt', v_node.attempt, 'job', v_node.job));
    else
      perform infernet.send('node:' || v_node.id, 'attempts', jsonb_build_object('count', v_node.n));
    end if;
  end loop;
  return null;
end $$;

create trigger announce_attempts after insert on public.job_attempts
  referencing new table as new_rows for each statement execute function infernet.announce_attempts();

-- Tells the consumer that its job moved, and the node that it should stop. The assignment made by
-- submit_job itself is in that call's answer, and its start follows at once. Who sent a batch asks for all
-- of it (get_batch), and is not told of each of ten thousand items.
create function infernet.announce_job() returns trigger
language plpgsql security definer set search_path = '' as $$
declare
  v_attempt public.job_attempts;
begin
  if new.state in ('running', 'cancelling') then
    select * into v_attempt from public.job_attempts a where a.id = new.attempt_id;
    if new.state = 'cancelling' then
      perform infernet.send('node:' || v_attempt.provider_id, 'cancel', jsonb_build_object('attempt', new.attempt_id, 'job', new.id));
      return null;
    elsif v_attempt.at_submit then
      return null;
    end if;
  end if;
  perform infernet.send('job:' || new.consumer_id || ':' || new.id, 'state',
                        jsonb_build_object('job', new.id, 'state', new.state, 'attempt', new.attempt_id));
  return null;
end $$;

create trigger announce_job after update of state on public.jobs
  for each row when (old.state is distinct from new.state and new.state <> 'assigned'
                      and (new.batch_id is null or new.state = 'cancelling')) execute function infernet.announce_job();

-- Tells owner and operators that a node's state or approval changed.
create function infernet.announce_node() returns trigger
language plpgsql security definer set search_path = '' as $$
declare
  v_payload jsonb := jsonb_build_object('node', new.id, 'status', new.status, 'approval', new.approval);
begin
  perform infernet.send('owner:' || new.owner_id, 'node', v_payload);
  perform infernet.send('operator:fleet', 'node', v_payload);
  return null;
end $$;

create trigger announce_node after update of status, approval on public.providers
  for each row when ((old.status, old.approval) is distinct from (new.status, new.approval))
  execute function infernet.announce_node();
