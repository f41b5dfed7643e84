-- What an operator calls, and service_role: credit, approvals, status of people, settings.

-- Gives a person credit, from the platform's goodwill. The id is the caller's: a repeat is not paid twice.
create function infernet.grant_credit(p_id uuid, p_public_key text, p_amount numeric, p_memo text) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_user   uuid;
  v_result text;
begin
  perform infernet.require_operator();
  if p_id is null or p_amount is null or p_amount = 'NaN' or p_amount <= 0 or p_amount > 1000000 then
    perform infernet.refuse(422, 'bad_input', 'A credit needs an id and an amount above 0, at most 1000000 USD.');
  end if;
  select u.id into v_user from public.users u where u.public_key = p_public_key;
  if not found then
    perform infernet.refuse(404, 'unknown_user', 'No user has this public key.', 'A user appears with the first login: infernet login');
  end if;
  v_result := infernet.post_transfer(p_id, 'grant',
    array[infernet.account('goodwill', null), infernet.account('available', v_user)],
    array[-round(p_amount, 12), round(p_amount, 12)], null, null, p_memo);
  return jsonb_build_object('transfer', p_id, 'result', v_result, 'balance',
    (select infernet.usd(a.balance) from public.ledger_accounts a where a.id = infernet.account('available', v_user)));
end $$;

-- The offers of a provider follow its approval and its privacy, also where an operator changes the row in
-- Studio.
create function infernet.follow_provider() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  update public.offers set approved = new.approval = 'approved', listed = new.approval = 'approved' and new.is_public
  where provider_id = new.id;
  return null;
end $$;

create trigger follow_provider after update of approval, is_public on public.providers
  for each row when ((old.approval, old.is_public) is distinct from (new.approval, new.is_public))
  execute function infernet.follow_provider();

-- Approves, suspends or revokes a provider. Its offers follow. A suspended node is refused in every call, so its
-- lease runs out, and what it ran goes elsewhere.
create function infernet.set_node_approval(p_node uuid, p_approval text) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_node public.providers;
begin
  perform infernet.require_operator();
  if p_approval is null or p_approval not in ('pending', 'approved', 'suspended', 'revoked') then
    perform infernet.refuse(422, 'bad_input', 'An approval is pending, approved, suspended or revoked.');
  end if;
  update public.providers p set approval = p_approval::public.node_approval where p.id = p_node returning * into v_node;
  if not found then
    perform infernet.refuse(404, 'unknown_node', format('There is no provider %s.', p_node));
  end if;
  return jsonb_build_object('id', v_node.id, 'name', v_node.name, 'approval', v_node.approval);
end $$;

create function infernet.set_user_status(p_public_key text, p_status text) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_user public.users;
begin
  perform infernet.require_operator();
  if p_status is null or p_status not in ('active', 'suspended') then
    perform infernet.refuse(422, 'bad_input', 'A status is active or suspended.');
  end if;
  update public.users u set status = p_status::public.user_status where u.public_key = p_public_key returning * into v_user;
  if not found then
    perform infernet.refuse(404, 'unknown_user', 'No user has this public key.');
  end if;
  return jsonb_build_object('id', v_user.id, 'public_key', v_user.public_key, 'status', v_user.status);
end $$;

-- Sets how a person may use the queue: the highest priority of their jobs, and how many of them may wait and
-- run at a time; null: what holds for everybody. Says what holds now.
create function infernet.set_consumer_limits(p_public_key text, p_priority_max int, p_queued_limit int, p_running_limit int) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_user public.users;
begin
  perform infernet.require_operator();
  if coalesce(p_priority_max, 0) not between 0 and 9 or p_queued_limit < 0 or p_running_limit < 0 then
    perform infernet.refuse(422, 'bad_input', 'A priority is 0 to 9, and a limit at least 0.');
  end if;
  update public.users u set priority_max = coalesce(p_priority_max, 0), queued_limit = p_queued_limit, running_limit = p_running_limit
  where u.public_key = p_public_key returning * into v_user;
  if not found then
    perform infernet.refuse(404, 'unknown_user', 'No user has this public key.', 'A user appears with the first login: infernet login');
  end if;
  return jsonb_build_object('id', v_user.id, 'public_key', v_user.public_key, 'priority_max', v_user.priority_max,
    'queued_limit', coalesce(v_user.queued_limit, infernet.setting_int('queued_limit')),
    'running_limit', coalesce(v_user.running_limit, infernet.setting_int('running_limit')));
end $$;

create function infernet.set_setting(p_key text, p_value jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
begin
  perform infernet.require_operator();
  update public.settings s set value = p_value where s.key = p_key;
  if not found then
    perform infernet.refuse(404, 'unknown_setting', format('There is no setting %s.', coalesce(left(p_key, 80), 'null')),
      'Settings: ' || (select string_agg(s.key, ', ' order by s.key) from public.settings s));
  end if;
  return jsonb_build_object('key', p_key, 'value', p_value);
end $$;

create function infernet.operator_proof() returns jsonb
language plpgsql stable security definer set search_path = '' as $$
begin
  perform infernet.require_operator();
  return infernet.prove_ledger();
end $$;
