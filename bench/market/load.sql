-- A market of any size, made fast: for the benchmarks, and for tests of plans. Run as the cluster's
-- superuser. It makes a schema of functions, and each loads one part:
--
--   select load.people('base', 1000);             consumers with credit
--   select load.nodes('base', 100, 5, 20, 8);     nodes, models and offers
--
-- A world is a name before all others, so that two of different sizes can live in one database.

create schema load;

create function load.key(p_world text, p_what text, p_number int) returns text
language sql immutable parallel safe as $$
  select encode(sha256(convert_to(format('%s %s %s', p_world, p_what, p_number), 'UTF8')), 'hex')
$$;

-- Makes consumers with a million dollars each.
create function load.people(p_world text, p_consumers int) returns void
language plpgsql as $$
begin
  perform infernet.ensure_user(load.key(p_world, 'consumer', i), format('%s consumer %s', p_world, i))
  from generate_series(0, p_consumers - 1) i;
  perform infernet.post_transfer(gen_random_uuid(), 'grant',
    array[infernet.account('goodwill', null), infernet.account('available', k.subject)], array[-1e6, 1e6])
  from infernet.keys k
  where k.public_key = any (array(select load.key(p_world, 'consumer', i) from generate_series(0, p_consumers - 1) i));
end $$;

-- Makes nodes, two an owner, and registers each with its offers: offer o is of model o / p_offers, on
-- node o % p_nodes, so that a node has as many offers as models x offers / nodes. Prices lie within a
-- tenth of each other.
create function load.nodes(p_world text, p_nodes int, p_models int, p_offers int, p_slots int) returns void
language plpgsql as $$
declare
  v_node   infernet.keys;
  v_offers jsonb;
begin
  if p_models * p_offers % p_nodes <> 0 or p_offers > p_nodes then
    raise exception '% models x % offers do not spread over % nodes', p_models, p_offers, p_nodes;
  end if;
  for i in 0 .. p_nodes - 1 loop
    insert into infernet.keys (public_key, subject, kind)
    values (load.key(p_world, 'node', i), gen_random_uuid(), 'provider') returning * into v_node;
    perform infernet.make_node(v_node,
      infernet.ensure_user(load.key(p_world, 'owner', i / 2), format('%s owner %s', p_world, i / 2)),
      format('%s node %s', p_world, i));
    update public.providers set approval = 'approved' where id = v_node.subject and approval <> 'approved';
    select jsonb_agg(jsonb_build_object('model', format('%s/model-%s', p_world, o / p_offers), 'slots', p_slots,
             'price_input', 0.1 + (o * 7 % 20) * 0.0005, 'price_output', 0.4 + (o * 11 % 20) * 0.002))
    into v_offers from generate_series(i, p_models * p_offers - 1, p_nodes) o;
    perform set_config('request.jwt.claims',
      jsonb_build_object('sub', v_node.subject, 'role', 'authenticated', 'kind', 'node')::text, true);
    perform public.register_node('{"platform":"linux"}', v_offers, 'bench');
  end loop;
  perform set_config('request.jwt.claims', '', true);
end $$;
